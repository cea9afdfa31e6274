"""The console command ``token-guidance``: every program that users run, under a name of its own.

``pip install .`` puts it on the path, and the programs with it. In a checkout they are files as well; what a message or
``--help`` prints is the command that exists where it is read.
"""

from common.training.program import run_command

import argparse
import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from common.errors import UserError, nearest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = "token-guidance"

# By name: the file in a checkout, and what it does.
PROGRAMS = {
    "fsc": ("prompt_task/run_fsc.py", "learn few-shot prompts"),
    "sum": ("sum_task/run_sum.py", "learn summarization"),
    "chat": ("chat_task/run_chat.py", "learn rewards of replies from preferences, and a policy"),
    "rank": ("chat_task/rank_replies.py", "replies of a model, ranked by a preference of your own"),
    "score": ("chat_task/score_tokens.py", "the learned reward of each token of replies"),
    "score-summaries": ("sum_task/score_tokens.py", "the learned reward of each token of summaries"),
    "generate": ("sum_task/generate.py", "summarize texts with a trained policy"),
    "evaluate-prompts": ("prompt_task/evaluate_prompts.py", "score given prompts on a data set"),
    "sweep": ("scripts/sweep.py", "runs of a task (fsc, sum or chat) over data sets, seeds and options"),
    "collect": ("scripts/collect_results.py", "run folders to one table"),
    "compare": ("scripts/compare_guidance.py", "kinds of guidance beside random search, at an equal budget"),
    "compare-policies": ("scripts/compare_policies.py", "replies of policies against others', by a judge"),
    "prepare-data": ("scripts/prepare_fsc_data.py", "few-shot splits of a data set"),
    "wordnet": ("scripts/install_wordnet.py", "install WordNet, which METEOR needs"),
    "check-model": ("scripts/check_model.py", "what a model can do here"),
    "noisy-references": ("scripts/make_noisy_references.py", "references with planted errors"),
    "lead": ("scripts/lead_summaries.py", "the baseline of the first sentences"),
    "credit": ("scripts/credit_accuracy.py", "do token rewards point at what is wrong?"),
    "draw-credit": ("scripts/draw_credit.py", "one text with wrong words, coloured by token rewards"),
    "draw-policies": ("scripts/draw_policy_curves.py", "how policies are judged while they learn, over seeds"),
}


def as_typed(text: str) -> str:
    """Commands in a text, written as in the folder of a checkout, as they are typed here.

    That is ``token-guidance NAME`` where the package is installed, and the file's path from the current folder in a
    checkout.
    """
    files = {f"python {file}": name for name, (file, _) in PROGRAMS.items()}
    files |= {f"bash scripts/sweep_{task}.sh": f"sweep {task}" for task in ("fsc", "sum", "chat")}
    for command, name in files.items():
        text = text.replace(command, _path_from_here(command) if (ROOT / "setup.py").is_file() else f"{COMMAND} {name}")
    return text


def _path_from_here(command: str) -> str:
    shell, file = command.split()
    return f"{shell} {min(os.path.relpath(ROOT / file), str(ROOT / file), key=len)}"


class Parser(argparse.ArgumentParser):
    """Flags of a program; a mistake is one line, `UserError`, with the nearest flag.

    Args:
        program: its file, from the folder of a checkout.
        doc: its docstring, which ``--help`` prints.
    """

    def __init__(self, program: str, doc: str | None) -> None:
        super().__init__(
            prog=as_typed(f"python {program}"),
            description=as_typed(doc or ""),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        unknown = message.partition("unrecognized arguments: ")[2].partition(" ")[0].partition("=")[0]
        close = nearest(unknown, self._option_string_actions) if unknown else ""
        raise UserError(message.removeprefix("argument ") + close)


def main(words: Sequence[str] | None = None) -> int:
    """Hand the words over to the program that the first of them names.

    Raises:
        UserError: there is no such program.
    """
    words = list(sys.argv[1:] if words is None else words)
    if not words or words[0] in ("--help", "-h"):
        print(f"usage: {COMMAND} PROGRAM [WORDS]\n\nPrograms, each with --help:\n")
        print("\n".join(f"  {name:<17} {what}" for name, (_, what) in PROGRAMS.items()))
        return 0
    if words[0] not in PROGRAMS:
        raise UserError(f"there is no program '{words[0]}'{nearest(words[0], PROGRAMS)}; {COMMAND} --help lists them")
    file, _ = PROGRAMS[words[0]]
    sys.argv = [sys.argv[0], *words[1:]]
    # As `python -m`: whatever starts processes of its own, or pickles, finds the program where it looks for it.
    runpy.run_module(file.removesuffix(".py").replace("/", "."), run_name="__main__", alter_sys=True)
    return 0


def start() -> NoReturn:
    """What setup.py makes a command of."""
    run_command(main)
