"""Prompts and replies as the token ids of one model: text or messages, where each is cut, where a reply ends."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from transformers import AutoTokenizer, GenerationConfig

from common.errors import UserError
from common.language_models.pretrained import load_tokenizer
from common.language_models.token_carry import Span, token_spans
from common.training.run_files import saved_fields

Messages = Sequence[Mapping[str, Any]]
Text = str | Messages

PLACE = "{prompt}"
FORMAT_FILE = "reply_format.json"


def end_token_ids(generation_config: GenerationConfig, tokenizer: Any) -> set[int]:
    """The tokens at which an LM ends a reply: those of its configuration, and the tokenizer's end token."""
    own = generation_config.eos_token_id
    return {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None}


@dataclass(frozen=True)
class EncodedReply:
    """A reply in a model's tokens.

    Attributes:
        ids: its tokens; none before the reply, none behind its end token.
        has_end: whether the last one is an end token.
        cut: whether the reply was longer.
        spans: characters (start, end) of the reply that each token holds, where they were asked for; those of an end
            token lie behind the text.
    """

    ids: list[int]
    has_end: bool
    cut: bool
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class ReplyFormat:
    """How prompts and replies become token ids.

    A prompt is text, which goes into `prompt_template`, or messages, which go through the tokenizer's chat template. A
    reply to text is text; a reply to messages is the assistant's text, or messages. Prompts that are too long are cut
    from the left (a start token stays), replies from the right (their end token goes, none is put in its place).
    Articles to sum up are prompts too, of which the beginning stays, and around them the whole template.

    Attributes:
        tokenizer: of transformers.
        is_encoder_decoder: whether an encoder reads the prompt.
        prompt_template: text with ``{prompt}`` in it, for prompts that are text.
        max_prompt_length, max_reply_length: in tokens; the end token counts.
        keeps_start: the beginning of a long text stays.
        special_tokens: the tokenizer's own stand around a prompt that is text, and an end token closes replies.
        refused: why texts cannot be read by these settings; None where they can.
    """

    tokenizer: Any
    is_encoder_decoder: bool
    prompt_template: str = PLACE
    max_prompt_length: int = 1024
    max_reply_length: int = 1024
    keeps_start: bool = False
    special_tokens: bool = True
    refused: str | None = None

    def encode_prompt(self, prompt: Text) -> tuple[list[int], bool]:
        """Token ids of a prompt, and whether it was cut.

        Raises:
            UserError: messages without a chat template, or broken ones; an empty prompt for a tokenizer that has no
                token to stand for it.
        """
        if isinstance(prompt, str):
            if self.keeps_start:
                return self._encode_beginning(prompt)
            text = self.prompt_template.replace(PLACE, prompt)
            ids = self.tokenizer(text, add_special_tokens=self.special_tokens, verbose=False)["input_ids"]
            while not self.is_encoder_decoder and ids and ids[-1] in self.special_ids:
                ids = ids[:-1]  # some tokenizers end every text; a prompt goes on
            if not ids:
                starts = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
                ids = [token for token in starts if token is not None][:1]
        else:
            ids = self._plain(self._templated(prompt, add_generation_prompt=True))
        if not ids:
            raise UserError("an empty prompt, and the tokenizer has no start or end token to stand for it")
        if len(ids) <= self.max_prompt_length:
            return ids, False
        kept = next((i for i, token in enumerate(ids) if token not in self.special_ids), 0)
        kept = min(kept, 1, self.max_prompt_length - 1)
        return ids[:kept] + ids[len(ids) - self.max_prompt_length + kept :], True

    def encode_reply(self, prompt: Text, reply: Text, with_spans: bool = False) -> EncodedReply:
        """Token ids of a reply to a prompt.

        Raises:
            UserError: see `encode_prompt`; or the chat template changes the prompt once there is a reply.
        """
        if isinstance(prompt, str):
            if not isinstance(reply, str):
                raise UserError("messages as the reply to a prompt that is text")
            text, shift = reply, 0
        else:
            text, shift = self._templated_reply(prompt, reply)
        ids, spans = self._with_spans(text) if with_spans else (self._plain(text), ())
        last = max((place for place, token in enumerate(ids) if token in self.special_ids), default=-1)
        behind = self.tokenizer.decode(ids[last + 1 :]) if last >= 0 else ""
        if last >= 0 and not behind.strip():
            ids, spans = ids[: last + 1], spans[: last + 1]  # a template may put a line break behind the end token
            has_end = True
        elif self.special_tokens and self.tokenizer.eos_token_id is not None:
            ids, spans = [*ids, self.tokenizer.eos_token_id], (*spans, (len(text), len(text) + 1))
            has_end = True
        else:
            has_end = False
        cut = len(ids) > self.max_reply_length
        if cut:
            ids, has_end = ids[: self.max_reply_length], False
        if not ids:
            raise UserError("an empty reply, and the tokenizer has no end token to stand for it")
        moved = tuple((max(start - shift, 0), max(end - shift, 0)) for start, end in spans[: len(ids)])
        return EncodedReply(ids, has_end, cut, moved if with_spans else ())

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the tokenizer's special tokens, end tokens of chat templates among them."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return frozenset(self.tokenizer.all_special_ids) | {i for i, token in added.items() if token.special}

    def describe(self) -> dict[str, Any]:
        """The plain settings, as they are saved beside a model's tokenizer."""
        return {
            "prompt_template": self.prompt_template,
            "max_prompt_length": self.max_prompt_length,
            "max_reply_length": self.max_reply_length,
            "keeps_start": self.keeps_start,
            "special_tokens": self.special_tokens,
            "refused": self.refused,
        }

    def save(self, folder: str | Path) -> None:
        """Write tokenizer and settings beside a model."""
        self.tokenizer.save_pretrained(folder)
        (Path(folder) / FORMAT_FILE).write_text(json.dumps(self.describe(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, is_encoder_decoder: bool) -> Self:
        """Read what `save` wrote; prompts and replies of a folder without settings are taken as they are.

        Raises:
            UserError: the tokenizer or the file cannot be read.
        """
        tokenizer = load_tokenizer(AutoTokenizer, str(folder))
        path = Path(folder) / FORMAT_FILE
        fields = saved_fields(path, cls) if path.is_file() else {}
        loaded = cls(**fields | {"tokenizer": tokenizer, "is_encoder_decoder": is_encoder_decoder})
        if min(loaded.max_prompt_length, loaded.max_reply_length) < 1:
            raise UserError(f"cannot read {path}: a length is below 1")
        if loaded.refused is not None:
            raise UserError(f"'{folder}': {loaded.refused}")
        return loaded

    def _encode_beginning(self, text: str) -> tuple[list[int], bool]:
        """See `keeps_start`."""
        before, _, after = self.prompt_template.partition(PLACE)
        if self.is_encoder_decoder:
            ids = self.tokenizer(before + text + after, verbose=False)["input_ids"]
            options = {"truncation": True, "max_length": self.max_prompt_length}
            cut = len(ids) > self.max_prompt_length
            return (self.tokenizer(before + text + after, **options)["input_ids"] if cut else ids), cut
        first, last = self._plain(before), self._plain(after)
        if (
            self.tokenizer.bos_token_id is not None
            and self.tokenizer("a")["input_ids"][0] == self.tokenizer.bos_token_id
        ):
            first = [self.tokenizer.bos_token_id, *first]
        room = self.max_prompt_length - len(first) - len(last)
        ids = self._plain(text)
        return first + ids[: max(room, 0)] + last, len(ids) > room

    def _templated_reply(self, prompt: Messages, reply: Text) -> tuple[str, int]:
        """What the chat template puts behind the prompt for a reply, and where in it the reply's own text begins."""
        messages = [{"role": "assistant", "content": reply}] if isinstance(reply, str) else list(reply)
        before = self._templated(prompt, add_generation_prompt=True)
        whole = self._templated([*prompt, *messages])
        if not whole.startswith(before):
            raise UserError("the chat template writes the prompt in another way once there is a reply to it")
        text = whole[len(before) :]
        content = messages[0].get("content") if messages else None
        return text, max(text.find(content), 0) if isinstance(content, str) else 0

    def _templated(self, messages: Messages, add_generation_prompt: bool = False) -> str:
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise UserError("messages, but the tokenizer has no chat template; chat_template names a file with one")
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # a template is a program of its own, with any errors
            raise UserError(f"the chat template refuses the messages: {str(error).splitlines()[0]}") from None
        return text

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _with_spans(self, text: str) -> tuple[list[int], tuple[Span, ...]]:
        if not self.tokenizer.is_fast:
            ids = self._plain(text)
            return ids, tuple(token_spans(self.tokenizer, ids)[1])
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return list(encoded["input_ids"]), tuple(map(tuple, encoded["offset_mapping"]))
