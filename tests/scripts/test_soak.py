"""The soak benchmark: its memory slope, and that it sees what differs."""

import json

import pytest

from scripts.benchmarks import soak


def test_the_slope_of_a_straight_line_is_its_growth_an_hour():
    memory = [(float(second), 1000 + 10 * second / 3600) for second in range(0, 7200, 60)]
    assert soak.growth_per_hour(memory, 600) == pytest.approx(10 / 1010, rel=0.02)


def test_a_few_peaks_and_the_warm_up_do_not_turn_it():
    memory = [(float(second), 500.0 if second < 600 else 1000.0) for second in range(0, 3600, 10)]
    memory[200:205] = [(second, 3000.0) for second, _ in memory[200:205]]
    assert soak.growth_per_hour(memory, 600) == 0


def test_an_outcome_leaves_out_what_the_clock_and_the_machine_decide(tmp_path):
    command = soak.prompt_command()
    for name in command.files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "results.json").write_text(json.dumps({"wall_seconds": 3, "test_accuracy": 0.5}))
    first = command.outcome(tmp_path)
    assert first["results.json"] == {"test_accuracy": 0.5}
    (tmp_path / "results.json").write_text(json.dumps({"wall_seconds": 4, "test_accuracy": 0.5}))
    assert command.outcome(tmp_path) == first
    (tmp_path / "prompts.csv").write_bytes(b"y")
    assert command.outcome(tmp_path) != first


def test_an_output_folder_that_is_there_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        soak.main(["--task", "prompt", "--output", str(tmp_path)])
    assert refused.value.code == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.slow
def test_a_short_soak_of_a_short_run(tmp_path, monkeypatch):
    short = ("--max_train_samples=64", "--max_eval_samples=16", "--max_predict_samples=16", "--preference=rouge1")
    monkeypatch.setattr(soak, "soak_command", lambda task, length: soak.summary_command(*short, "--checkpoint_steps=2"))
    words = ["--task", "summary", "--output", str(tmp_path / "soak"), "--minutes", "1", "--between", "8", "20"]
    soak.main(words)  # its exit code judges memory too, which a run of seconds says nothing of
    figures = json.loads((tmp_path / "soak" / "soak.json").read_text())
    assert figures["kills"] >= 1
    assert figures["different"] == []
