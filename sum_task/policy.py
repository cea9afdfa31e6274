"""The policy: a language model that summarizes."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from common.language_models.adapters import merged_state_dict
from common.language_models.evaluation_mode import evaluation_mode
from common.language_models.pretrained import load_pretrained
from common.training.files import write_folder_atomic
from sum_task.batching import Collator, Padded
from sum_task.reading import Reader, Sources
from sum_task.sampling import sample_summaries
from sum_task.search import search_summaries
from sum_task.text_format import TextFormat, read_settings


class SummaryPolicy(Reader):
    """A language model that summarizes: reads sources once, samples, scores and searches summaries of them."""

    def collator(self, pad_lengths: tuple[int, int] | None = None, learn_padding: bool = False) -> Collator:
        """What makes batches for this policy; see `Collator`."""
        return Collator(self.pad_id, not self.is_encoder_decoder, pad_lengths, learn_padding)

    def sample(self, sources: Sources, per_source: int, noise: Tensor, top_k: int | None, temperature: float) -> Padded:
        """Summaries drawn from the policy, see `sample_summaries`."""
        return sample_summaries(self, sources, per_source, noise, top_k, temperature)

    def search(self, sources: Sources, max_length: int, num_beams: int = 1) -> Padded:
        """The summaries that a user gets, see `search_summaries`."""
        return search_summaries(self, sources, max_length, num_beams)

    @torch.no_grad()
    def write(self, texts: Padded, max_length: int, num_beams: int = 1) -> list[str]:
        """The summary of each article, by greedy or beam search, dropout off."""
        with evaluation_mode(self.lm):
            return self.texts(self.search(self.encode(texts), max_length, num_beams))

    def texts(self, summaries: Padded) -> list[str]:
        """The text of each summary."""
        texts = (self.format.text(ids).strip().split("\n") for ids in summaries.lists())
        return ["\n".join(line.strip() for line in lines) for lines in texts]

    def save_pretrained(self, folder: Path) -> None:
        """Write the model, its tokenizer and the text format; the folder loads with `from_pretrained` alone."""
        with write_folder_atomic(folder) as temporary:
            self.lm.save_pretrained(temporary, state_dict=merged_state_dict(self.lm))
            self.tokenizer.save_pretrained(temporary)
            self.format.save(temporary)

    @classmethod
    def from_pretrained(cls, folder: str) -> "SummaryPolicy":
        """Load a policy that `save_pretrained` wrote.

        Raises:
            UserError: the folder holds none.
        """
        settings = read_settings(folder, "policy")
        config = load_pretrained(AutoConfig, folder)
        lm = load_pretrained(auto_class(config), folder, complete=True, dtype=torch.float32)
        return cls(lm.eval(), TextFormat.load(folder, settings, bool(config.is_encoder_decoder)))


def auto_class(config: Any) -> Any:
    """Of transformers, with the head of a language model."""
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
