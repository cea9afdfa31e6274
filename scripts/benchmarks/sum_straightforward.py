"""The straightforward way of summarization with token rewards, as one writes it first: the thing to beat.

It computes the same numbers as the project. Everything is batched and samples are written with transformers' own
`generate` and its cache; nothing in it is slow on purpose. It only repeats each article for each of its samples before
the encoder reads it, takes batches in random order, asks nltk for one METEOR score at a time, and lets the reward
model be a whole language model, whose last hidden states it reads.
"""

from collections.abc import Sequence
from typing import Any

import torch
from nltk.translate.meteor_score import single_meteor_score
from torch import Tensor
from transformers import T5ForConditionalGeneration

from common.aggregation import aggregate_token_rewards
from common.grounding_loss import list_mle_loss
from common.token_reward_model import TokenRewardModel, bound_rewards
from sum_task.batching import TokenizedRows
from sum_task.sentences import word_tokens
from sum_task.settings import SummarizationSettings


class RewardLM(torch.nn.Module):
    """A language model with a reward head on its last hidden states."""

    def __init__(self, config: Any, head: torch.nn.Module, bound: str):
        super().__init__()
        self.lm = T5ForConditionalGeneration(config)
        self.head = head
        self.bound = bound

    @classmethod
    def like(cls, model: TokenRewardModel) -> "RewardLM":
        """One with the weights of the project's reward model, in memory of its own, as transformers makes it."""
        made = cls(model.config.backbone_config(), torch.nn.Sequential(*model.head.children()), model.config.bound)
        made.lm.load_state_dict(model.backbone.state_dict(), strict=False)
        made.head.load_state_dict(model.head.state_dict())
        return made

    def forward(self, source_ids: Tensor, source_mask: Tensor, tokens: Tensor) -> Tensor:
        """Rewards (N, T) of the tokens (N, T) of a summary of each source (N, S)."""
        start = tokens.new_full((len(tokens), 1), self.lm.config.decoder_start_token_id)
        decoder_ids = torch.cat([start, tokens], 1)
        output = self.lm(
            input_ids=source_ids, attention_mask=source_mask, decoder_input_ids=decoder_ids, use_cache=False,
            output_hidden_states=True,
        )  # fmt: skip
        hidden = output.decoder_hidden_states[-1][:, 1:]
        return bound_rewards(self.head(hidden).squeeze(-1), self.bound)


class StraightforwardSummaries:
    """A reward-learning step and a policy step.

    Args:
        lm: the policy.
        reward_model: see above.
        tokenizer: of both.
        train: the rows to learn from.
        settings: options of the summarization task.
        seed: of the order of the batches.
    """

    def __init__(
        self,
        lm: T5ForConditionalGeneration,
        reward_model: RewardLM,
        tokenizer: Any,
        train: TokenizedRows,
        settings: SummarizationSettings,
        seed: int,
    ):
        self.lm = lm
        self.reward_model = reward_model
        self.tokenizer = tokenizer
        self.train = train
        self.settings = settings
        self.reward_optimizer = torch.optim.Adam(reward_model.parameters(), lr=settings.reward.rew_learning_rate)
        self.policy_optimizer = torch.optim.AdamW(
            lm.parameters(), lr=settings.policy.learning_rate, weight_decay=settings.policy.weight_decay
        )
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
        size = settings.reward.reward_learning_batch_size
        self.batches = [order[i : i + size] for i in range(0, len(order), size)]

    def padded(self, sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token ids (N, longest) and their mask."""
        batch = self.tokenizer.pad({"input_ids": [list(ids) for ids in sequences]}, return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"]

    @torch.no_grad()
    def sample(self, source_ids: Tensor, source_mask: Tensor) -> tuple[Tensor, Tensor]:
        """A summary of each row: tokens (N, T) and their mask, up to the first end token."""
        settings = self.settings
        self.lm.eval()
        lm: Any = self.lm
        written = lm.generate(
            input_ids=source_ids, attention_mask=source_mask, do_sample=True, top_k=settings.reward.sampling_top_k,
            temperature=settings.reward.sampling_temperature, max_new_tokens=settings.text.max_target_length,
        )  # fmt: skip
        tokens = written[:, 1:]
        ends = (tokens == self.tokenizer.eos_token_id).long()
        return tokens, (ends.cumsum(-1) - ends) == 0

    def meteor(self, tokens: Tensor, mask: Tensor, references: Sequence[str]) -> Tensor:
        """(N,): METEOR of each summary against its reference."""
        scores = []
        for row, real, reference in zip(tokens, mask, references, strict=True):
            text = self.tokenizer.decode(row[real], skip_special_tokens=True).strip()
            scores.append(single_meteor_score(word_tokens(reference), word_tokens(text)))
        return torch.tensor(scores, dtype=torch.float64)

    def reward_loss(
        self, source_ids: Tensor, source_mask: Tensor, tokens: Tensor, mask: Tensor, preferences: Tensor
    ) -> Tensor:
        """ListMLE of the K samples of each article; `preferences` is (B, K), all else has a row a sample."""
        settings = self.settings
        per_set = (*preferences.shape, -1)
        rewards = self.reward_model(source_ids, source_mask, tokens).view(per_set)
        scores = aggregate_token_rewards(
            rewards, mask.view(per_set), settings.reward.agg_func, settings.reward.soft_maxmin_temp
        )
        return list_mle_loss(scores, preferences)

    def reward_step(self, rows: Sequence[int]) -> float:
        """Sample and rank summaries of some rows, fit the reward model to the ranking."""
        count = self.settings.reward.reward_learning_samples
        repeated = [row for row in rows for _ in range(count)]
        source_ids, source_mask = self.padded([self.train.sources[row] for row in repeated])
        tokens, mask = self.sample(source_ids, source_mask)
        preferences = self.meteor(tokens, mask, [self.train.rows[row].reference for row in repeated])
        self.reward_model.train()
        loss = self.reward_loss(source_ids, source_mask, tokens, mask, preferences.view(len(rows), count))
        loss.backward()
        self._update(self.reward_model, self.reward_optimizer)
        return loss.item()

    def policy_loss(self, source_ids: Tensor, source_mask: Tensor, targets: Tensor, target_mask: Tensor) -> Tensor:
        """Reward-weighted maximum likelihood of the references, one a row."""
        self.reward_model.eval()
        with torch.no_grad():
            rewards = self.reward_model(source_ids, source_mask, targets).masked_fill(target_mask == 0, 0)
        weights = rewards / rewards.sum(-1, keepdim=True)
        logits = self.lm(input_ids=source_ids, attention_mask=source_mask, labels=targets).logits
        chosen = logits.log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        return -(weights * chosen).sum(-1).mean()

    def policy_step(self, rows: Sequence[int]) -> float:
        """One optimizer step of the policy on the references of some rows."""
        source_ids, source_mask = self.padded([self.train.sources[row] for row in rows])
        targets, target_mask = self.padded([self.train.targets[row] for row in rows])
        self.lm.train()
        loss = self.policy_loss(source_ids, source_mask, targets, target_mask)
        loss.backward()
        self._update(self.lm, self.policy_optimizer)
        return loss.item()

    def _update(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), self.settings.reward.gradient_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
