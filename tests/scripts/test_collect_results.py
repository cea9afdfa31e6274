from common.training.program import run_command

import csv
import json
import re
import sys
from html.parser import HTMLParser

import pytest

from chat_task.settings import ChatSettings
from common.reporting.report import NO_VALUE
from scripts import collect_results
from sum_task.settings import SummarizationSettings
from tests.written_runs import prompt_run, summary_run


def collect(monkeypatch, capsys, *words):
    """Run the command and return (exit code, what it printed, its error line)."""
    monkeypatch.setattr(sys, "argv", ["collect_results.py", *map(str, words)])
    with pytest.raises(SystemExit) as caught:
        run_command(collect_results.main)
    printed = capsys.readouterr()
    return caught.value.code, printed.out, printed.err


@pytest.fixture
def runs(tmp_path):
    """Two aggregations on one data set, three seeds of one and two of the other, and one run that was cut off."""
    folder = tmp_path / "runs"
    for seed, accuracy in enumerate((0.90, 0.92, 0.97)):
        prompt_run(folder / f"sum-{seed}", accuracy, seed=seed)
    for seed, accuracy in enumerate((0.80, 0.90)):
        prompt_run(folder / f"max-{seed}", accuracy, seed=seed, agg_func="max")
    prompt_run(folder / "max-2", None, seed=2, agg_func="max")
    return folder


def test_the_table_holds_mean_deviation_n_and_the_published_figure(runs, monkeypatch, capsys):
    code, out, _ = collect(monkeypatch, capsys, runs)
    assert code == 0
    lines = out.splitlines()
    assert "| data set | guidance | aggregation | n | test accuracy | test accuracy, published |" in lines
    assert "| sst-2 | token | sum | 3 | 93.00 (3.61) | 92.60 (1.70) |" in lines
    assert "| sst-2 | token | max | 2 | 85.00 (7.07) | 91.20 (2.50) |" in lines
    # Seeds 0 and 1: -10 and -2; the third seed of one of them is in no comparison.
    assert "| sst-2 | token, max | token, sum | test accuracy | 2 | 85.00 | 91.00 | -6.00 | \N{EN DASH} |" in lines
    assert any(line.startswith("| partial |") and "max-2" in line for line in lines)
    assert any(line.startswith("| missing | sst-2, token, max | no whole run of dataset_seed=2") for line in lines)


def test_every_file_is_written_and_says_the_same(runs, tmp_path, monkeypatch, capsys):
    output = tmp_path / "new" / "table"
    collect(monkeypatch, capsys, runs, "--output", output)
    assert {path.name for path in output.iterdir()} == {
        "table.md", "table.csv", "table.tex", "runs.csv", "compare.csv", "plot.svg", "plot.png", "report.html",
    }  # fmt: skip
    table = {row["aggregation"]: row for row in csv.DictReader((output / "table.csv").open())}
    assert float(table["sum"]["test accuracy mean"]) == pytest.approx(93)
    assert float(table["sum"]["test accuracy std"]) == pytest.approx(13**0.5)
    assert table["max"]["n"] == "2"
    assert len(list(csv.DictReader((output / "runs.csv").open()))) == 5
    (compared,) = csv.DictReader((output / "compare.csv").open())
    assert float(compared["difference"]) == pytest.approx(-6)
    tex = (output / "table.tex").read_text()
    assert r"\toprule" in tex and r"\providecommand{\toprule}{\hline}" in tex and r"\label{tab:prompt}" in tex
    assert "sst-2 & token & sum & 3 & 93.00 (3.61) & 92.60 (1.70)" in tex
    assert (output / "plot.png").read_bytes()[:4] == b"\x89PNG"
    # A mark for each of the five runs.
    assert len(re.findall("<use ", (output / "plot.svg").read_text())) >= 5
    first = {path.name: path.read_bytes() for path in output.iterdir()}
    collect(monkeypatch, capsys, runs, "--output", output)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == first


class Links(HTMLParser):
    """What a page would load."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [
            value for name, value in attrs if name in ("src", "href") and not value.startswith(("data:", "#"))
        ]
        assert tag != "script"


def test_the_page_needs_nothing_and_shows_seeds_curves_and_prompts(runs, tmp_path, monkeypatch, capsys):
    collect(monkeypatch, capsys, runs, "--output", tmp_path / "table")
    page = (tmp_path / "table" / "report.html").read_text()
    links = Links()
    links.feed(page)
    assert not links.found
    for heading in (
        "Every seed", "Training", "Prompts that improved most and least", "Two methods over the same seeds",
        "In no mean", "Every run",
    ):  # fmt: skip
        assert f"<h2><bdi>{heading}" in page
    assert "token, sum mean 93 of 90, 92, 97" in page  # what the chart tells those who do not see it
    assert "prefers-color-scheme: dark" in page


def test_curves_are_means_over_the_seeds_with_their_rounds(runs):
    rows, _ = collect_results.collect([runs], collect_results.TASKS)
    panels = {panel.ylabel: panel for panel in collect_results.mean_curves(rows)}
    accuracy = panels["eval/dev_accuracy"]
    assert accuracy.series == {"token, max": [(2, 0.5), (4, 0.75)], "token, sum": [(2, 0.5), (4, 0.75)]}
    assert list(accuracy.vlines) == [3]


def test_curves_end_where_one_of_the_seeds_ends(runs):
    events = (runs / "sum-0" / "metrics.jsonl").read_text().splitlines()
    (runs / "sum-0" / "metrics.jsonl").write_text("\n".join(events[:3]) + "\n")
    (runs / "sum-1" / "metrics.jsonl").write_text("\n".join(events).replace("0.75", "1.0") + "\n")
    rows, _ = collect_results.collect([runs], collect_results.TASKS)
    panels = {panel.ylabel: panel for panel in collect_results.mean_curves(rows)}
    assert panels["eval/dev_accuracy"].series["token, sum"] == [(2, 0.5)]


def test_prompts_are_ordered_by_their_gain_over_the_empty_prompt(runs):
    rows, _ = collect_results.collect([runs], collect_results.TASKS)
    found = collect_results.improved_prompts(rows)
    assert [round(entry["gain (points)"]) for entry in found] == [47, 42, 40, 40, 30]


def test_summaries_are_compared_article_by_article(tmp_path):
    def predictions(*scores):
        names = ("gains", "loses", "same")
        return [
            {"source": name, "reference": "r", "prediction": f"{name} {score}", "rougeL": score}
            for name, score in zip(names, scores, strict=True)
        ]

    for seed in (0, 1):
        summary_run(tmp_path / f"a{seed}", 40, seed, predictions(60, 10, 30 + seed))
        summary_run(tmp_path / f"b{seed}", 35, seed, predictions(20, 50, 30), guidance="none")
    rows, _ = collect_results.collect([tmp_path], collect_results.TASKS)
    by_label = {row.label: row for row in rows}
    found = collect_results.improved_summaries(by_label["token, avg"], by_label["none"])
    assert [(entry["article"], entry["gain"]) for entry in found] == [("gains", 40), ("same", 0.5), ("loses", -40)]
    assert (found[0]["A"], found[0]["B"]) == ("gains 60", "gains 20")


def test_published_summaries_stand_beside_ours(tmp_path, monkeypatch, capsys):
    summary_run(tmp_path / "a", 40.0)
    summary_run(tmp_path / "b", 30.0, guidance="none")
    _, out, _ = collect(monkeypatch, capsys, tmp_path)
    out = out.replace(NO_VALUE, "-")
    assert "| cnn_dailymail | token | avg | 1 | 40.00 (-) | 43.09 (0.06) | 40.00 (-) | 20.17 (0.04) |" in out
    # A published figure of the method is none of plain maximum likelihood.
    assert "| cnn_dailymail | none |  | 1 | 30.00 (-) |  | 30.00 (-) |  |" in out


def test_two_methods_are_compared_by_name(runs, monkeypatch, capsys):
    prompt_run(runs / "other", 0.5, seed=0, agg_func="max", learning_rate=0.1)
    _, out, _ = collect(monkeypatch, capsys, runs, "--compare", "agg_func=sum", "agg_func=max, learning_rate=0.1")
    assert "| sst-2 | token, sum, learning_rate=5e-05 | token, max, learning_rate=0.1 | test accuracy | 1 |" in out
    assert out.count("| sst-2 | token, sum, learning_rate=5e-05 |") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--compare", "agg_func=min", "agg_func=max"], "no data set has two different methods 'agg_func=min'"),
        (["--compare", "agg_func=max", "agg_func=max"], "no data set has two different methods"),
        (["--compare", "guidance=token", "agg_func=max"], "'guidance=token' is several methods of sst-2"),
        (["--compare", "max", "agg_func=max"], "'max' is not of the form key=value"),
        (["--outptu", "x"], "unrecognized arguments: --outptu"),
        (["/no/such/folder"], "'/no/such/folder' is no folder"),
        (["--output", "/dev/null/x"], "--output: '/dev/null/x' cannot be written"),
    ],
)
def test_what_is_typed_wrong_is_one_line(words, message, runs, monkeypatch, capsys):
    code, _, err = collect(monkeypatch, capsys, runs, *words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_without_a_complete_run_there_is_no_table(tmp_path, monkeypatch, capsys):
    prompt_run(tmp_path / "a", None)
    code, out, err = collect(monkeypatch, capsys, tmp_path)
    assert code == 2
    assert "partial" in out
    assert "no complete run" in err


def test_odd_characters_stay_in_their_cells(tmp_path, monkeypatch, capsys):
    odd = "a|b\n<script>alert(1)</script> [x](http://x.y) `c` \\ $x_1$ & 50% \u202e é"
    for seed, source in enumerate(("plain", odd)):
        prompt_run(tmp_path / f"r{seed}", 0.9, source_str=source)
    output = tmp_path / "o ü(1)"
    code, out, _ = collect(monkeypatch, capsys, tmp_path, "--output", output)
    assert code == 0
    line = next(line for line in out.splitlines() if "alert" in line)
    assert len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"(?<!\\)\|", out.splitlines()[2]))
    for mark in ("<script>", "[x](", "http://", " `c` "):
        assert mark not in out
    assert r"&lt;script&gt;alert(1)&lt;/script&gt; \[x\](http&#58;//x.y) \`c\`" in line
    assert "<script>" not in (output / "report.html").read_text()
    tex = (output / "table.tex").read_text()
    assert r"\$x\_1\$ \& 50\%" in tex
    (cell,) = [
        row["options"] for row in csv.DictReader((output / "table.csv").open(newline="")) if "b" in row["options"]
    ]
    assert cell == f"source_str={odd}"


def test_runs_of_different_code_are_remarked_on(runs, monkeypatch, capsys):
    file = runs / "sum-1" / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"environment": {"git_commit": "abc"}}))
    _, out, _ = collect(monkeypatch, capsys, runs)
    assert "sst-2, token, sum: runs of 2 versions of the code: None, abc" in out


def test_what_runs_do_not_read_are_options_of_their_tasks():
    for task, settings in (
        (collect_results.SUMMARIES, SummarizationSettings),
        (collect_results.REPLIES, ChatSettings),
    ):
        options = settings.kinds().keys()
        for (option, _), names in task.unread.items():
            assert {option, *names} <= options
    unread = collect_results.SUMMARIES.unread["guidance", "none"]
    assert {"credit", "rew_head", "rew_learning_rate", "agg_func"} <= unread
    assert unread.isdisjoint(
        {"learning_rate", "preference", "sampling_top_k", "gradient_clip_norm", "max_entropy_coeff"}
    )
