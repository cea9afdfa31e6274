"""How articles and summaries become the token ids of a model, and how that is saved beside it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from common.errors import UserError
from common.language_models.capabilities import decoder_start_id
from common.language_models.line_breaks import LineBreak, decode_lines, line_break
from common.language_models.pretrained import load_tokenizer
from common.language_models.replies import PLACE, ReplyFormat

FORMAT_FILE = "summarization.json"
_SAVED = ("source_prefix", "separator", "max_source_length", "source_language", "target_language")


@dataclass(frozen=True)
class TextFormat:
    """How articles and summaries become the token ids of one model.

    Attributes:
        tokenizer: a tokenizer of transformers.
        is_encoder_decoder: encoder-decoder: source = prefix + article, cut at the end. Decoder-only: prefix + article
            + separator, of which only the article is cut.
        source_prefix, separator: see above.
        max_source_length: tokens of a source.
        source_language, target_language: codes of a multilingual tokenizer; None where it knows none.
    """

    tokenizer: Any
    is_encoder_decoder: bool
    source_prefix: str
    separator: str
    max_source_length: int
    source_language: str | None = None
    target_language: str | None = None

    def sources(self, articles: Sequence[str]) -> list[list[int]]:
        """Token ids of each article as the model reads it.

        Raises:
            UserError: prefix and separator leave no room for an article.
        """
        if not articles:
            return []
        if self.is_encoder_decoder:
            texts = self._marked([self.source_prefix + article for article in articles])
            return self.tokenizer(texts, truncation=True, max_length=self.max_source_length)["input_ids"]
        before, after = self._plain([self.source_prefix, self.separator])
        if self.tokenizer.bos_token_id is not None and self._adds_start():
            before = [self.tokenizer.bos_token_id, *before]
        room = self.max_source_length - len(before) - len(after)
        if room < 1:
            raise UserError(
                f"max_source_length: source_prefix and separator alone take {len(before) + len(after)} tokens "
                f"of {self.max_source_length}"
            )
        return [before + ids[:room] + after for ids in self._plain(articles)]

    def targets(self, summaries: Sequence[str], max_length: int) -> list[list[int]]:
        """Token ids of each summary, at most `max_length`, the last of which is the end token."""
        if not summaries:
            return []
        end = self.tokenizer.eos_token_id
        if self.is_encoder_decoder:  # what stands before a target is not written but given: see `decoder_start`
            options = {"text_target": self._marked(summaries), "add_special_tokens": False, "verbose": False}
            return [[*ids[: max_length - 1], end] for ids in self.tokenizer(**options)["input_ids"]]
        return [[*ids[: max_length - 1], end] for ids in self._plain(summaries)]

    def text(self, ids: Sequence[int], **options: Any) -> str:
        """The text of a summary's tokens, special ones left out; `options` are those of the tokenizer's ``decode``."""
        return decode_lines(self.tokenizer, ids, self.line_break, skip_special_tokens=True, **options)

    @cached_property
    def line_break(self) -> LineBreak | None:
        """How the vocabulary writes a line break, where it has only a mark for it."""
        return line_break(self.tokenizer)

    def reply_format(self) -> ReplyFormat:
        """The same for `TokenRewardModel.score_texts`, which knows nothing of languages and marks of line breaks."""
        is_plain = self.source_language is None and self.target_language is None and self.line_break is None
        return ReplyFormat(
            self.tokenizer,
            self.is_encoder_decoder,
            f"{self.source_prefix}{PLACE}{'' if self.is_encoder_decoder else self.separator}",
            self.max_source_length,
            keeps_start=True,
            refused=None if is_plain else "its languages or marks of line breaks need SummaryRewardModel",
        )

    def save(self, folder: Path) -> None:
        """Write the plain settings beside a model; the tokenizer is saved by itself."""
        (folder / FORMAT_FILE).write_text(json.dumps(self.describe(), indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: str, settings: Mapping[str, Any], is_encoder_decoder: bool) -> "TextFormat":
        """That of a saved folder, with its tokenizer; `settings`: see `read_settings`."""
        tokenizer = load_tokenizer(AutoTokenizer, folder)
        set_languages(tokenizer, settings["source_language"], settings["target_language"], folder)
        return cls(tokenizer, is_encoder_decoder, **settings)

    def describe(self) -> dict[str, Any]:
        """The plain settings."""
        return {name: getattr(self, name) for name in _SAVED}

    def _marked(self, texts: Sequence[str]) -> list[str]:
        return list(texts) if self.line_break is None else [self.line_break.mark(text) for text in texts]

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(self._marked(texts), add_special_tokens=False, verbose=False)["input_ids"]

    def _adds_start(self) -> bool:
        return self.tokenizer("a")["input_ids"][0] == self.tokenizer.bos_token_id


def read_settings(folder: str, kind: str) -> dict[str, Any]:
    """The plain settings of the text format that lies in a saved folder.

    Raises:
        UserError: it is not such a folder.
    """
    try:
        found = json.loads((Path(folder) / FORMAT_FILE).read_text(encoding="utf-8"))
        return {name: found.get(name) if name.endswith("_language") else found[name] for name in _SAVED}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"'{folder}' is not the {kind} folder of a summarization run: no {FORMAT_FILE} in it") from None


def decoder_start(config: Any, tokenizer: Any) -> tuple[int, ...]:
    """What an encoder-decoder's decoder reads before a target.

    Its start token, then whatever the tokenizer puts before every target: nobody chooses those, so they are given and
    neither written nor rewarded. A code that the tokenizer puts behind the end token (mBART's way) is the start token.

    Raises:
        UserError: nothing says what it is.
    """
    ids = tokenizer(text_target="a")["input_ids"]
    text = tokenizer(text_target="a", add_special_tokens=False)["input_ids"]
    at = next((i for i in range(len(ids)) if ids[i : i + len(text)] == text), len(ids))
    before, behind = ids[:at], ids[at + len(text) :]
    codes = behind[behind.index(tokenizer.eos_token_id) + 1 :] if tokenizer.eos_token_id in behind else []
    if codes:
        return tuple(codes[-1:])
    start = decoder_start_id(config)
    if start is None and not before:
        start = tokenizer.pad_token_id
        if start is None:
            raise UserError(f"a {config.model_type} without decoder_start_token_id whose tokenizer has no pad token")
    return tuple(before) if start is None or before[:1] == [start] else (start, *before)


def set_languages(tokenizer: Any, source: str | None, target: str | None, name: str) -> tuple[str | None, str | None]:
    """Tell a multilingual tokenizer the languages of articles and summaries, and return those that it uses.

    Raises:
        UserError: it needs one that is not given, or does not know one.
    """
    found: list[str | None] = []
    for option, attribute, code in (("source_language", "src_lang", source), ("target_language", "tgt_lang", target)):
        if not hasattr(tokenizer, attribute):
            if code is not None:
                raise UserError(f"{option}: the tokenizer of '{name}' does not tell languages apart")
            found.append(None)
            continue
        if code is None and getattr(tokenizer, attribute) is None:
            raise UserError(f"{option}: needed by the multilingual tokenizer of '{name}', such as en_XX or eng_Latn")
        if code is not None:
            try:
                setattr(tokenizer, attribute, code)
                known = tokenizer.convert_tokens_to_ids(code) not in (None, tokenizer.unk_token_id)
            except KeyError:
                known = False
            known = (
                known
                or code in getattr(tokenizer, "lang_code_to_id", {})
                or code in getattr(tokenizer, "lang_code_to_token", {})
            )
            if not known:
                raise UserError(f"{option}: the tokenizer of '{name}' knows no language '{code}'")
        found.append(getattr(tokenizer, attribute))
    return found[0], found[1]
