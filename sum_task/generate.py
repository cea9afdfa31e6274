"""Summarizes texts with a trained policy.

python sum_task/generate.py --model RUN/policy --input article.txt
python sum_task/generate.py --model RUN/policy --input articles.jsonl --text_column document --output summaries.jsonl
"""

from common.training.program import run_command

import sys
from collections.abc import Sequence

from transformers.utils import logging as transformers_logging

from common.errors import UserError, printable_text
from common.training.console import Parser
from common.training.data_files import FILE_TYPES, is_table, read_rows, read_text, text_cell
from common.training.files import check_output, write_jsonl_atomic
from common.training.progress import progress
from common.training.ranges import COUNT
from common.training.runtime import choose_device
from sum_task.batching import pad
from sum_task.data import article_column
from sum_task.policy import SummaryPolicy
from sum_task.search import write_texts


def summarize(
    policy: SummaryPolicy, articles: Sequence[str], max_length: int = 128, num_beams: int = 1, batch_size: int = 8
) -> list[str]:
    """The summary of each article, by greedy (one beam) or beam search.

    Args:
        policy: see `SummaryPolicy.from_pretrained`.
        articles: texts of any length; each is cut to the source length the policy was trained with.
        max_length: tokens of a summary.
        num_beams: beams of the search.
        batch_size: articles in one pass.
    """
    sources = policy.format.sources(articles)
    order = sorted(range(len(articles)), key=lambda i: len(sources[i]), reverse=True)
    summaries = [""] * len(articles)
    for rows in progress([order[i : i + batch_size] for i in range(0, len(order), batch_size)], "summarizing", "batch"):
        padded = pad([sources[i] for i in rows], policy.pad_id, left=not policy.is_encoder_decoder)
        texts = write_texts(policy, padded.to(policy.device), max_length, num_beams)
        for i, text in zip(rows, texts, strict=True):
            summaries[i] = text
    return summaries


def main(words: Sequence[str] | None = None) -> int:
    """Read the command line, summarize, print or write."""
    transformers_logging.disable_progress_bar()
    parser = Parser("sum_task/generate.py", __doc__)
    parser.add_argument("--model", required=True, metavar="FOLDER", help="policy folder of a run")
    parser.add_argument(
        "--input", required=True, metavar="FILE",
        help=f"a text file with one article (- is the standard input), or a file of rows: {', '.join(FILE_TYPES)}",
    )  # fmt: skip
    parser.add_argument("--text_column", metavar="NAME", help="its column of articles; else source, or a usual name")
    parser.add_argument("--output", metavar="FILE", help="jsonl file to write; else a summary a line is printed")
    parser.add_argument("--max_length", type=COUNT, default=128, metavar="N", help="tokens of a summary (128)")
    parser.add_argument("--num_beams", type=COUNT, default=1, metavar="N", help="beams of the search (1: greedy)")
    parser.add_argument("--batch_size", type=COUNT, default=8, metavar="N", help="articles in one pass (8)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N, mps")
    options = parser.parse_args(words)
    if options.output:
        check_output("--output", options.output, options.input)
    device = choose_device(options.device)
    if is_table(options.input):
        articles = [
            text_cell(where, cells, options.text_column or article_column(cells))
            for where, cells in read_rows(options.input)
        ]
    elif options.text_column is not None:
        raise UserError(f"--text_column: '{options.input}' is a text file, which has no columns")
    else:
        articles = [read_text(options.input)]
    if not any(article.strip() for article in articles):
        raise UserError(f"--input: '{options.input}' holds no article")
    policy = SummaryPolicy.from_pretrained(options.model)
    policy.to(device)
    summaries = summarize(policy, articles, options.max_length, options.num_beams, options.batch_size)
    if options.output:
        rows = [{"source": a, "prediction": s} for a, s in zip(articles, summaries, strict=True)]
        write_jsonl_atomic(options.output, rows)
    else:
        for summary in summaries:
            line = " ".join(summary.split())
            print(printable_text(line) if sys.stdout.isatty() else line)
    return 0


if __name__ == "__main__":
    run_command(main)
