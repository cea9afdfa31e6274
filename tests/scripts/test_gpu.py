"""The report for whoever has a GPU, on a CPU with tiny models."""

import json

from scripts.benchmarks import gpu
from scripts.benchmarks.gpu import ARITHMETIC


def test_report(tmp_path, capsys):
    gpu.main(["--tiny", "--repeats", "1", "--no_tests", "--device", "cpu", "--output", str(tmp_path / "out")])
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.strip() in capsys.readouterr().out
    steps = json.loads((tmp_path / "out" / "figures.json").read_text())["steps"]
    for name, found in steps.items():
        assert f"| {name} |" in report
        alone = name.startswith("prompts") and "scoring" not in name  # computed in float32 alone
        assert list(found) == [kind for kind in ARITHMETIC if not (alone and kind == "bf16")]
        assert all(figures["seconds"] > 0 for figures in found.values())
    assert len(steps) == 5
    assert "Not run: no --base_path." in report
