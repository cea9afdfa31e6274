"""Replies of a language model, ranked by a preference of your own: the file of rankings that run_chat.py learns from.

python chat_task/rank_replies.py --model POLICY --input prompts.jsonl --preference mine:prefer --output ranked.jsonl
python chat_task/rank_replies.py --model builtin/report-lm --input builtin/planted-errors --output ranked.jsonl \\
    --prompt_template 'summarize: {prompt}' --max_reply_length 32
python chat_task/run_chat.py --config=chat_builtin --dataset_name=null --train_file=ranked.jsonl

Each prompt gets several sampled replies. mine:prefer is package.module:function, called with the prompts and replies of
a batch, a list of each; it gives back a number for each reply, higher is better. Of built-in data it is the true score,
and the column "wrong" holds the characters of each wrong word. A reward model that learnt from replies which its policy
would not write does not know what is wrong with those that it does write: the method ranks the policy's own, and again
(--model RUN/policy) once the policy has learnt. Prompts are written as they are in the input, each once; learn with the
same --prompt_template. Empty replies are left out, and prompts without two replies of which one is better.
"""

from common.training.program import run_command

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from chat_task.data import BUILTIN_DATA
from chat_task.models import check_positions
from chat_task.ranking_rows import parsed, text_or_messages
from chat_task.written_replies import generate_replies
from common.builtin.planted_errors import KnownErrors, known_errors, ranked_rows
from common.errors import UserError
from common.language_models.pretrained import load_pretrained, load_tokenizer
from common.language_models.replies import PLACE, ReplyFormat, Text, end_token_ids
from common.language_models.text_scores import load_lm
from common.reply_rewards import padded, prompt_tokens
from common.training.console import Parser
from common.training.data_files import read_rows, shown_columns
from common.training.files import check_output, json_text, write_jsonl_atomic
from common.training.own_pieces import numbers, own_function, try_out
from common.training.progress import progress
from common.training.ranges import COUNT, INDEX, number
from common.training.runtime import start_runtime

Prefer = Callable[[Sequence[Text], Sequence[str]], Sequence[float]]
logger = logging.getLogger("chat_task.rank_replies")  # not __name__, which is __main__ for a command

MADE_UP = ["The Rhine.", "Bonn."]  # replies


def main(words: Sequence[str] | None = None) -> int:
    """Read the command line, sample replies, rank them and write the file."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    transformers_logging.disable_progress_bar()
    parser = Parser("chat_task/rank_replies.py", __doc__)
    parser.add_argument("--model", required=True, metavar="NAME", help="LM that writes: hub id, folder or built in")
    parser.add_argument(
        "--input", required=True, metavar="FILE", help="prompts: a file, or " + " or ".join(BUILTIN_DATA)
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="JSON lines of prompt, completions, scores")
    parser.add_argument("--preference", metavar="NAME", help="package.module:function(prompts, replies) -> scores")
    parser.add_argument("--prompt_column", default="prompt", metavar="NAME", help="column of prompts (prompt)")
    parser.add_argument(
        "--prompt_template", default=PLACE, metavar="TEXT", help=f"text around prompts that are text ({PLACE})"
    )
    parser.add_argument(
        "--samples", type=number(int, minimum=2), default=4, metavar="K", help="replies to each prompt (4)"
    )
    parser.add_argument("--limit", type=COUNT, metavar="N", help="only the first N prompts")
    parser.add_argument(
        "--temperature",
        type=number(float, minimum=1e-3, maximum=1e3),
        default=1.0,
        metavar="T",
        help="1 samples the LM",
    )
    parser.add_argument(
        "--max_prompt_length", type=COUNT, default=1024, metavar="N", help="tokens; longer ones are left out (1024)"
    )
    parser.add_argument(
        "--max_reply_length", type=COUNT, default=256, metavar="N", help="tokens, the end token included (256)"
    )
    parser.add_argument(
        "--batch_size", type=COUNT, default=16, metavar="N", help="prompts whose replies are written at once (16)"
    )
    parser.add_argument("--seed", type=INDEX, default=0, help="of the samples (0)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps")
    options = parser.parse_args(words)
    check_output("--output", options.output, options.input)
    if PLACE not in options.prompt_template:
        raise UserError(f"--prompt_template: {options.prompt_template!r} has no {PLACE}")
    known = known_errors(sentences=BUILTIN_DATA[options.input]) if options.input in BUILTIN_DATA else None
    if known is not None and options.preference is not None:
        raise UserError("--preference: built-in replies are ranked by their true score; leave it out")
    if known is None and options.preference is None:
        raise UserError("--preference: name a function that ranks, package.module:function(prompts, replies) -> scores")
    asked = list(_prompts(options.input, options.prompt_column, options.limit))
    prefer = _preference(options.preference, known, [asked[0], asked[-1]])
    runtime = start_runtime(options.seed, options.device)
    tokenizer = load_tokenizer(AutoTokenizer, options.model)
    is_encoder_decoder = load_pretrained(AutoConfig, options.model).is_encoder_decoder
    model = load_lm(options.model, is_encoder_decoder, runtime.device)
    reply_format = ReplyFormat(
        tokenizer, is_encoder_decoder, options.prompt_template, options.max_prompt_length, options.max_reply_length
    )
    encoded = [reply_format.encode_prompt(prompt) if prompt else ([], False) for prompt in asked]
    prompts = [prompt for prompt, (ids, cut) in zip(asked, encoded, strict=True) if ids and not cut]
    if len(prompts) < len(asked):
        left_out = len(asked) - len(prompts)
        logger.warning(
            "prompts that are empty or longer than --max_prompt_length: %d of %d left out", left_out, len(asked)
        )
    if not prompts:
        raise UserError(f"--max_prompt_length: {len(asked)} prompts, and all of them are empty or longer")
    longest = max(len(ids) for ids, cut in encoded if not cut)
    check_positions(model, is_encoder_decoder, longest, options.max_reply_length)
    rows: list[dict[str, Any]] = []
    cut_replies, empty = 0, 0
    for first in progress(range(0, len(prompts), options.batch_size), "sampling replies", "batch"):
        batch = prompts[first : first + options.batch_size]
        replies = sample_replies(model, reply_format, batch, options.samples, options.temperature)
        cut_replies += sum(not reply.ended for of_prompt in replies for reply in of_prompt)
        texts = [[reply.text for reply in of_prompt if reply.text.strip()] for of_prompt in replies]
        empty += sum(options.samples - len(of_prompt) for of_prompt in texts)
        rows += _ranked(batch, texts, prefer, known)
    written = len(prompts) * options.samples
    if cut_replies:
        logger.warning(
            "%d of %d replies reached --max_reply_length; who learns from them with a greater one reads them as ended",
            cut_replies, written,
        )  # fmt: skip
    if empty:
        logger.warning("empty replies: %d of %d left out", empty, written)
    if not rows:
        raise UserError(f"--samples: the replies to each of {len(prompts)} prompts are all alike, or equally good")
    write_jsonl_atomic(options.output, rows)
    print(f"{len(rows)} rankings, {len(prompts) - len(rows)} of {len(prompts)} prompts left out: no reply is better")
    print(options.output)
    return 0


class Sample(NamedTuple):
    """A reply, and whether it ended before there were too many tokens."""

    text: str
    ended: bool


def sample_replies(
    model: Any, reply_format: ReplyFormat, prompts: Sequence[Text], samples: int, temperature: float = 1.0
) -> list[list[Sample]]:
    """Sampled replies to each prompt, from the whole vocabulary; torch's global generator is drawn upon.

    See `generate_replies`; a reply ends at the end tokens of model and tokenizer, as in policy learning.

    Args:
        model: an LM, decoder-only or encoder-decoder, in evaluation mode.
        reply_format: its tokenizer, how prompts are read, and the most tokens of a reply.
        prompts: texts or messages, none of them empty.
        samples: replies to each.
        temperature: of the softmax.
    """
    tokenizer, template = reply_format.tokenizer, reply_format.prompt_template
    asked = [template.replace(PLACE, prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    # A batch may hold both kinds, which a tokenizer reads in different ways.
    ids = [prompt_tokens(tokenizer, [prompt])[0][0].tolist() for prompt in asked]
    if reply_format.is_encoder_decoder:
        prompt_ids, prompt_mask = padded(ids, model.device)
    else:
        prompt_ids, prompt_mask = (part.flip(1) for part in padded([row[::-1] for row in ids], model.device))
    ends = end_token_ids(model.generation_config, tokenizer)
    written = generate_replies(
        model, prompt_ids, prompt_mask, ends, reply_format.max_reply_length, samples, temperature
    )
    found = []
    for reply in written:
        ended = reply[-1] in ends
        found.append(Sample(tokenizer.decode(reply[:-1] if ended else reply, skip_special_tokens=True), ended))
    return [found[n * samples : (n + 1) * samples] for n in range(len(prompts))]


def _ranked(
    prompts: Sequence[Text], replies: Sequence[Sequence[str]], prefer: Prefer, known: KnownErrors | None
) -> list[dict[str, Any]]:
    """Rows of the file; without prompts that teach nothing."""
    different = [list(dict.fromkeys(texts)) for texts in replies]
    if not any(different):
        return []
    pairs = [(prompt, text) for prompt, texts in zip(prompts, different, strict=True) for text in texts]
    found = prefer([prompt for prompt, _ in pairs], [text for _, text in pairs])
    numbers("--preference", found, (len(pairs),))
    scores = iter(torch.as_tensor(found, dtype=torch.float64).tolist())
    rows = []
    for prompt, texts in zip(prompts, different, strict=True):
        own = [next(scores) for _ in texts]
        if len(set(own)) < 2:
            continue
        row: dict[str, Any] = {"prompt": prompt, "completions": texts, "scores": own}
        if known is not None:
            edits = [known.edits(str(prompt), text)[:-1] for text in texts]  # the last one stands behind the text
            row["wrong"] = [[list(span) for span, count in of_text if count] for of_text in edits]
        rows.append(row)
    return rows


def _preference(name: str | None, known: KnownErrors | None, prompts: Sequence[Text]) -> Prefer:
    """What ranks.

    Args:
        name: a function of the user's, where nothing is known.
        known: what is wrong in any reply.
        prompts: two, for the function to be tried out on.

    Raises:
        UserError: the function cannot be had, or gives back something else.
    """
    if known is not None:
        return lambda prompts, replies: [known.score(str(p), r) for p, r in zip(prompts, replies, strict=True)]
    assert name is not None  # see `main`
    numbers(f"--preference: '{name}'", try_out("--preference", name, prompts=prompts, replies=MADE_UP), (2,))
    function = own_function(name)

    def prefer(prompts: Sequence[Text], replies: Sequence[str]) -> Any:
        try:
            return function(prompts, replies)
        except Exception as error:  # anything, in a function of the user's
            raise UserError(f"--preference: '{name}' fails: {type(error).__name__}: {error}".splitlines()[0]) from error

    return prefer


def _prompts(source: str, column: str, limit: int | None) -> Iterator[Text]:
    """The different prompts of the input, in its order.

    Raises:
        UserError: it cannot be read, or a row has no prompt.
    """
    rows: Iterable[tuple[str, Mapping[str, Any]]]
    if source in BUILTIN_DATA:
        rows = ((f"row {n}", row) for n, row in enumerate(ranked_rows(sentences=BUILTIN_DATA[source]), start=1))
    else:
        rows = read_rows(source)
    seen = set()
    for where, row in rows:
        if row.get(column) is None:
            raise UserError(f"{where}: no column '{column}' ({shown_columns(row)}); --prompt_column names it")
        try:
            prompt = text_or_messages(parsed(row[column]), column)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        if (key := json_text(prompt)) not in seen:
            seen.add(key)
            yield prompt
        if limit is not None and len(seen) == limit:
            return
    if not seen:
        raise UserError(f"--input: '{source}' holds no row")


if __name__ == "__main__":
    run_command(main)
