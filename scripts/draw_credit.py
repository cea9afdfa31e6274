"""One text with wrong words, its tokens coloured by what the rewards of several summarization runs say of them.

    python scripts/draw_credit.py --runs RUN RUN --input errors.jsonl --row 3 --output credit.png

The input is that of scripts/credit_accuracy.py; each run gets a line for the reward and, where its reward model tells,
one for the advantage: the reward less what the run's policy expects in its place. Each line has a scale of its own:
rewards from the lowest to the highest, advantages around 0. Wrong words are underlined.
"""

from common.training.program import run_command

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from common.errors import UserError
from common.reporting.marked_tokens import marked
from common.reporting.report import LIGHT_TOKENS, TOKEN_LEVELS, TokenRewards
from common.training.console import Parser
from common.training.files import check_output
from common.training.ranges import INDEX
from scripts.credit_accuracy import MarkedText, read_rows
from sum_task.data import Row
from sum_task.policy import SummaryPolicy
from sum_task.report import compared_tokens
from sum_task.reward_model import SummaryRewardModel
from sum_task.score_tokens import text_rewards

CHARACTER, LINE = 0.094, 0.36  # inches
WRONG = "#c2003d"


def lines_of(run: Path, row: MarkedText, likeliest: int = 8) -> list[TokenRewards]:
    """What a run says of the tokens of a text: its rewards and, as `rewards` of a second one, its advantages.

    Raises:
        UserError: the folder holds no reward model or policy of a summarization run.
    """
    policy = SummaryPolicy.from_pretrained(str(run / "policy"))
    reward = SummaryRewardModel.from_pretrained(str(run / "reward_model"), policy.format)
    rows = [Row(row.prompt, row.text)]
    [(tokens, rewards)] = text_rewards(reward, rows)
    lines = [TokenRewards(tokens[:-1], rewards[:-1], f"{run.name}: reward")]  # without the end token
    if reward.reads_policy_tokens and reward.model.tells_alternatives:
        [(advantages, _)] = compared_tokens(reward, policy, rows, likeliest)
        assert advantages is not None
        lines.append(TokenRewards(tokens[:-1], advantages[:-1], f"{run.name}: advantage"))
    return lines


def draw(lines: Sequence[TokenRewards], row: MarkedText, path: Path) -> None:
    """The lines, one below the other."""
    characters = max(len("".join(line.tokens)) + len(line.tokens) for line in lines)
    figure = Figure(figsize=(0.2 + CHARACTER * characters, 0.1 + 2 * LINE * len(lines)))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, figure.get_figwidth())
    axes.set_ylim(figure.get_figheight(), 0)
    axes.axis("off")
    colors = LIGHT_TOKENS.levels()
    for number, line in enumerate(lines):
        top = 2 * LINE * number
        furthest = max(map(abs, line.rewards))
        is_advantage = line.caption.endswith("advantage")
        low, high = (-furthest, furthest) if is_advantage else (min(line.rewards), max(line.rewards))
        caption = f"{line.caption}   ({low:.2f} to {high:.2f})"
        axes.text(0.1, top + 0.22, caption, fontsize=9, color="#5c6370", va="center")
        left, end = 0.1, 0
        for token, value in zip(line.tokens, line.rewards, strict=True):
            level = round((value - low) / (high - low) * (TOKEN_LEVELS - 1)) if high > low else TOKEN_LEVELS // 2
            width, height = CHARACTER * (len(token) + 0.6), 0.24
            axes.fill_between([left, left + width], top + 0.36, top + 0.36 + height, color=colors[level], linewidth=0)
            style = {"fontsize": 9, "family": "monospace", "va": "center", "ha": "center", "color": LIGHT_TOKENS.text}
            axes.text(left + width / 2, top + 0.36 + height / 2, token.strip(), **style)  # type: ignore[arg-type]
            [is_wrong] = marked([(end, end + len(token))], row.text, row.spans)
            if is_wrong:
                axes.plot([left, left + width], [top + 0.62] * 2, color=WRONG, linewidth=2)
            left, end = left + width + 0.02, end + len(token)
    figure.savefig(path, dpi=110)


def main(words: Sequence[str] | None = None) -> int:
    """Read, judge, draw."""
    parser = Parser("scripts/draw_credit.py", __doc__)
    parser.add_argument("--runs", required=True, nargs="+", type=Path, metavar="RUN", help="folders of runs")
    parser.add_argument("--input", required=True, metavar="FILE", help="jsonl file of texts with spans")
    parser.add_argument("--row", type=INDEX, default=0, metavar="N", help="which of its texts, from 0")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="png file")
    options = parser.parse_args(words)
    check_output("--output", options.output, options.input)
    rows = read_rows(options.input)
    if options.row >= len(rows):
        raise UserError(f"--row: {options.row} is out of range; '{options.input}' has {len(rows)} texts")
    row = rows[options.row]
    draw([line for run in options.runs for line in lines_of(run, row)], row, options.output)
    print(options.output)
    return 0


if __name__ == "__main__":
    run_command(main)
