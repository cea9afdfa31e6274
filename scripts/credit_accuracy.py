"""Do the rewards of tokens point at what is wrong? Areas under the curve on texts with marked spans.

    python scripts/credit_accuracy.py --reward_model RUN/reward_model --input errors.jsonl --output outputs/credit

Each line of the input has `text`, `spans` (pairs of characters, start and end, that are wrong) and, if it answers or
sums up something, `prompt`. The area is the probability that a token inside of a span has a lower reward than one
outside, 0.5 by chance: pooled over all tokens, and within each text, which leaves out that some texts are better than
others, as a mean over the texts that have both. Then the same of words, each as suspicious as the most suspicious of
its tokens (those behind the first follow from it and look right), and of names and numbers alone, the words with a
capital letter or a digit. The level of a reward in a state means nothing (docs/credit.md), so its advantage over what
the language model's own token would have there on average is measured too, where the reward model can tell it. Beside
them stands what they have to beat: the position in the text, log-probability and entropy of the language model that
the reward model started from (read off the run's results.json, or --language_model), the former less its own mean
(excess surprise: -log p - entropy), whether the word is a name or number, and random numbers, as a mean over 100
draws. Prompts and texts are tokenized, set into templates and cut as by the run.

Where lines also have `right`, for each span the words that belong there, each is put in place of its span: how often is
the reward of the first token that differs higher for the right words than for the wrong ones, in the same state?

Writes table.md, table.json and credit.png.
"""

from common.training.program import run_command

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from common.errors import UserError
from common.language_models.pretrained import load_pretrained, load_tokenizer
from common.language_models.replies import ReplyFormat
from common.language_models.token_carry import Span
from common.reporting.marked_tokens import areas, marked_row
from common.token_reward_model import TokenRewardModel
from common.training.console import Parser
from common.training.data_files import is_text, parse_json, read_lines
from common.training.files import write_json_atomic, write_text_atomic
from common.training.progress import progress
from common.training.ranges import COUNT
from common.training.runtime import choose_device
from sum_task.reward_model import SummaryRewardModel
from sum_task.text_format import FORMAT_FILE, decoder_start


@dataclass(frozen=True)
class MarkedText:
    """A text, the characters of it that are wrong, and what it answers."""

    text: str
    spans: tuple[tuple[int, int], ...]
    prompt: str = ""
    right: tuple[str, ...] = ()

    def corrected(self) -> list["MarkedText"]:
        """The text with one span corrected, for each of them."""
        spans = zip(self.spans, self.right, strict=bool(self.right))
        return [
            MarkedText(self.text[:start] + words + self.text[end:], (), self.prompt) for (start, end), words in spans
        ]


@dataclass(frozen=True)
class Reader:
    """Gives a reward model and a language model a prompt and a text in the tokens in which the former was trained.

    Attributes:
        read: a marked text -> token ids of its prompt; of the text, without an end token; the characters of these.
        start: what an encoder-decoder's decoder reads before a text; () for a decoder-only model.
    """

    read: Callable[[MarkedText], tuple[list[int], list[int], list[Span]]]
    start: tuple[int, ...] = ()

    def inputs(self, row: MarkedText, device: torch.device) -> tuple[dict[str, Any], list[Span], int]:
        """What a model reads, the characters of each token of the text, and the column of the first of them."""
        prompt, ids, spans = self.read(row)
        if self.start:
            before, inputs = list(self.start), {"input_ids": prompt, "decoder_input_ids": [*self.start, *ids]}
        else:
            before, inputs = prompt, {"input_ids": prompt + ids}
        return {name: torch.tensor([row], device=device) for name, row in inputs.items()}, spans, len(before)


@dataclass(frozen=True)
class Suspicions:
    """How suspicious each measure finds the tokens of a text.

    Attributes:
        ids: the tokens.
        offsets: their characters.
        values: of each measure, a number for each token; higher is more suspicious.
    """

    ids: list[int]
    offsets: list[Span]
    values: dict[str, list[float]]


@torch.no_grad()
def suspicions(
    row: MarkedText, reader: Reader, reward: TokenRewardModel, language_model: Any | None, of_states: bool = True
) -> Suspicions:
    """Ask reward model and language model, each in one pass.

    Without `of_states` for rewards and log-probabilities alone, which tell two tokens in one state apart.
    """
    inputs, offsets, first = reader.inputs(row, next(reward.parameters()).device)
    target = inputs["decoder_input_ids" if reader.start else "input_ids"][0, first:]
    log_p = None
    if language_model is not None:
        log_p = language_model(**inputs, use_cache=False).logits[0, first - 1 : -1].float().log_softmax(-1)
    if log_p is not None and of_states and reward.tells_alternatives:
        given, expected = reward.rewards_and_expectations(log_p.unsqueeze(0), targets_from=first, **inputs)
        values = {"reward": -given[0], "advantage": (expected - given)[0]}
    else:
        values = {"reward": -reward(**inputs, targets_from=first)[0, first:]}
    if log_p is not None:
        values["log-probability"] = surprise = -log_p.gather(1, target.unsqueeze(1)).squeeze(1)
        if of_states:
            entropy = -(log_p.exp() * log_p.clamp(min=-1e4)).sum(-1)
            values |= {"excess surprise": surprise - entropy, "entropy": entropy}
    columns = {name: column.tolist() for name, column in values.items()}
    if of_states:
        columns["position"] = [place / len(offsets) for place in range(len(offsets))]
    return Suspicions(target.tolist(), offsets, columns)


def swap_accuracy(
    rows: Sequence[MarkedText], found: Sequence[Suspicions], ask: Callable[[MarkedText], Suspicions]
) -> dict[str, float]:
    """How often each measure finds the wrong words of a span more suspicious than the right ones, and of how many.

    Compared is the first token that differs: both stand in the same state. Ties count one half. `ask` is for the texts
    with one span corrected.
    """
    wins: dict[str, list[float]] = {}
    for row, wrong in zip(rows, found, strict=True):
        for right in map(ask, row.corrected()):
            pairs = enumerate(zip(wrong.ids, right.ids, strict=False))
            place = next((place for place, (one, two) in pairs if one != two), None)
            if place is None:
                continue
            for name, column in right.values.items():
                gap = wrong.values[name][place] - column[place]
                wins.setdefault(name, []).append(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0)
    count = len(next(iter(wins.values()), []))
    return {name: sum(each) / count for name, each in sorted(wins.items(), reverse=True)} | {"spans": count}


def read_rows(path: str, limit: int | None = None) -> list[MarkedText]:
    """The texts of a file.

    Raises:
        UserError: it cannot be read, or a line lacks something; the message says which line.
    """
    rows: list[MarkedText] = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip() or (limit is not None and len(rows) == limit):
            continue
        where = f"--input: {path}, line {number}"
        try:
            cells = parse_json(where, line)
            text, prompt = cells["text"], cells.get("prompt") or ""
            spans = tuple((int(start), int(end)) for start, end in cells["spans"])
            right = tuple(cells.get("right") or ())
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            raise UserError(f"{where}: needs a text and spans, pairs of characters [start, end]") from None
        if not is_text(text) or not is_text(prompt) or not text.strip():
            raise UserError(f"{where}: text and prompt must be texts, and the text not blank")
        if right and (len(right) != len(spans) or not all(map(is_text, right))):
            raise UserError(f"{where}: right must hold a text for each of the {len(spans)} spans")
        if any(not 0 <= start < end <= len(text) for start, end in spans):
            raise UserError(f"{where}: a span lies outside of the text's {len(text)} characters, or is empty")
        rows.append(MarkedText(text, spans, prompt, right))
    if not any(row.spans for row in rows):
        raise UserError(f"--input: '{path}' holds no text with a span")
    return rows


def main(words: Sequence[str] | None = None) -> int:
    """Read, measure, write."""
    parser = Parser("scripts/credit_accuracy.py", __doc__)
    parser.add_argument("--reward_model", required=True, metavar="FOLDER", help="of a run of any task")
    parser.add_argument("--input", required=True, metavar="FILE", help="jsonl file of texts with spans")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--language_model", metavar="NAME", help="for the baselines; none: leave them out")
    parser.add_argument("--tokenizer", metavar="NAME", help="where the folder has none; default: of --language_model")
    parser.add_argument("--limit", type=COUNT, metavar="N", help="only the first N texts")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(words)
    rows = read_rows(options.input, options.limit)
    device = choose_device(options.device)
    name = _language_model_name(options)
    reward, reader = _load(options, name)
    language_model = None
    if name is not None:
        config = load_pretrained(AutoConfig, name)
        if bool(config.is_encoder_decoder) != reward.is_encoder_decoder:
            raise UserError(
                f"--language_model: '{name}' is of another kind than the reward model's backbone, a "
                f"{reward.config.backbone_config().model_type}"
            )
        auto_class = AutoModelForSeq2SeqLM if reward.is_encoder_decoder else AutoModelForCausalLM
        language_model = load_pretrained(auto_class, name, complete=True, dtype=torch.float32).eval().to(device)
    reward.to(device)  # type: ignore[arg-type]
    ask = partial(suspicions, reader=reader, reward=reward, language_model=language_model)
    found = [ask(row) for row in progress(rows, "asking of texts", "text")]
    table = areas(
        [marked_row(each.offsets, row.text, row.spans, each.values) for row, each in zip(rows, found, strict=True)]
    )
    kinds = list(table["random"])
    lines = [f"| {' | '.join(['measure', *kinds])} |", "| --- |" + " --- |" * len(kinds)]
    for measure_name, area in table.items():
        cells = " | ".join("-" if area[kind] is None else f"{area[kind]:.3f}" for kind in kinds)
        lines.append(f"| {measure_name} | {cells} |")
    text = "\n".join(lines)
    swaps = None
    if any(row.right for row in rows):
        swaps = swap_accuracy(rows, found, partial(ask, of_states=False))
    if swaps is not None:
        shares = ", ".join(f"{name} {share:.3f}" for name, share in swaps.items() if name != "spans")
        text += f"\n\nright words preferred to wrong ones at {swaps['spans']} spans: {shares}"
    options.output.mkdir(parents=True, exist_ok=True)
    write_text_atomic(options.output / "table.md", text + "\n")
    write_json_atomic(options.output / "table.json", {"texts": len(rows), "areas": table, "swaps": swaps})
    draw(table, options.output / "credit.png")
    print(text)
    for file in ("table.md", "table.json", "credit.png"):
        print(options.output / file)
    return 0


def draw(table: dict[str, dict[str, float | None]], path: Path) -> None:
    """Bars of the areas, from chance."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    names = list(table)
    shown = {"pooled": "tokens", "within texts": "tokens within texts", "words": "words", "names and numbers": None}
    for number, (kind, label) in enumerate(shown.items()):
        heights = [(table[name][kind] or 0.5) - 0.5 for name in names]
        places = [place + 0.2 * (number - 1.5) for place in range(len(names))]
        axes.bar(places, heights, 0.19, bottom=0.5, label=label or kind)
    axes.axhline(0.5, color="black", linewidth=0.8)
    axes.set_xticks(range(len(names)), [name.replace("-", "-\n").replace(" ", "\n") for name in names])
    axes.set_ylabel("area under the curve")
    figure.legend(loc="outside upper center", ncols=len(shown))
    figure.savefig(path, dpi=150)


def _language_model_name(options: argparse.Namespace) -> str | None:
    """The one that was given, else the one from which the run's reward model started."""
    if options.language_model is not None:
        return None if options.language_model == "none" else str(options.language_model)
    try:
        results = json.loads((Path(options.reward_model).resolve().parent / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            "--language_model: no results.json beside the reward model says which; name it, or none"
        ) from None
    return results.get("reward_model") or results.get("policy_lm") or results.get("model")


def _load(options: argparse.Namespace, language_model: str | None) -> tuple[TokenRewardModel, Reader]:
    """The reward model, and how its run made tokens: of articles and summaries, or of prompts as they are."""
    folder = Path(options.reward_model)
    if (folder / FORMAT_FILE).is_file():
        summaries = SummaryRewardModel.from_pretrained(str(folder))
        tokenizer, reward = summaries.format.tokenizer, summaries.model
        reader = Reader(partial(_read_summary, summaries), summaries.start)
    else:
        reward = TokenRewardModel.from_pretrained(options.reward_model)
        if (folder / "tokenizer_config.json").is_file():
            reply_format = ReplyFormat.load(folder, reward.is_encoder_decoder)
        elif name := options.tokenizer or language_model:
            reply_format = ReplyFormat(load_tokenizer(AutoTokenizer, name), reward.is_encoder_decoder)
        else:
            raise UserError(f"--tokenizer: '{folder}' holds none")
        tokenizer = reply_format.tokenizer
        start = decoder_start(reward.backbone.config, tokenizer) if reward.is_encoder_decoder else ()
        reader = Reader(partial(_read_reply, reply_format), start)
    if not tokenizer.is_fast:
        raise UserError(f"--tokenizer: that of '{tokenizer.name_or_path}' does not say which characters a token holds")
    return reward, reader


def _read_summary(summaries: SummaryRewardModel, row: MarkedText) -> tuple[list[int], list[int], list[Span]]:
    text = {"text_target" if summaries.start else "text": row.text}
    encoded = summaries.format.tokenizer(**text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    prompt = summaries.format.sources([row.prompt])[0]
    if not prompt and not summaries.start:
        prompt = [summaries.format.tokenizer.eos_token_id]  # something has to stand before the first token
    return prompt, encoded["input_ids"], encoded["offset_mapping"]


def _read_reply(reply_format: ReplyFormat, row: MarkedText) -> tuple[list[int], list[int], list[Span]]:
    reply = reply_format.encode_reply(row.prompt, row.text, with_spans=True)
    length = len(reply.ids) - reply.has_end
    return reply_format.encode_prompt(row.prompt)[0], reply.ids[:length], list(reply.spans[:length])


if __name__ == "__main__":
    run_command(main)
