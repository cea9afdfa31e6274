"""Complete runs of replies that go on with more epochs or steps, and a checkpoint that goes on in another folder."""

import json

import pytest
import torch
from safetensors.torch import load_file

from chat_task import run_chat
from common.errors import UserError
from tests.chat_task.test_run_chat import POLICY, results_of, words  # noqa: F401  a fixture

CHANGING = {"wall_seconds", "seconds_in_this_process", "peak_memory_mib"}
STEADY = ["--lr_scheduler_type=constant", "--checkpoint_steps=2"]


def outcome(folder, *parts):
    results = json.loads((folder / "results.json").read_text())
    return {name: value for name, value in results.items() if name not in CHANGING}, [
        (folder / part / "model.safetensors").read_bytes() for part in parts
    ]


@pytest.mark.parametrize("epochs", ["1", "1.5"])  # the end of an epoch, and the middle of one
def test_more_epochs_are_the_run_of_more_epochs(words, tmp_path, epochs, caplog):  # noqa: F811
    words = [*words, *STEADY]
    results_of(words, tmp_path / "long", "--num_train_epochs=3")
    results_of(words, tmp_path / "run", f"--num_train_epochs={epochs}")
    results_of(words, tmp_path / "run", "--num_train_epochs=3", "--extend")
    assert outcome(tmp_path / "run", "reward_model") == outcome(tmp_path / "long", "reward_model")
    assert "depends on the number of steps" not in caplog.text
    with pytest.raises(UserError, match="has num_train_epochs=3; num_train_epochs=3 is no more"):
        results_of(words, tmp_path / "run", "--num_train_epochs=3", "--extend")


def test_a_rate_that_depends_on_the_length_is_named(words, tmp_path, caplog):  # noqa: F811
    results_of(words, tmp_path / "run", "--num_train_epochs=1")
    results_of(words, tmp_path / "run", "--num_train_epochs=2", "--extend")
    assert "by lr_scheduler_type the learning rate depends on the number of steps" in caplog.text


def test_more_policy_steps_are_the_run_of_more_steps(words, tmp_path):  # noqa: F811
    pytest.importorskip("trl")
    words = [*words, *POLICY, "--policy_warmup_share=0", "--num_train_epochs=1"]
    results_of(words, tmp_path / "long", "--policy_steps=5")
    results_of(words, tmp_path / "run", "--policy_steps=3")
    results_of(words, tmp_path / "run", "--policy_steps=5", "--extend")
    parts = ("reward_model", "policy")
    assert outcome(tmp_path / "run", *parts) == outcome(tmp_path / "long", *parts)
    assert (tmp_path / "run" / "reward_report.html").is_file()
    with pytest.raises(UserError, match=r"with other options: num_train_epochs was 1\.0, is 2\.0"):
        results_of(words, tmp_path / "run", "--num_train_epochs=2", "--policy_steps=7", "--extend")


def test_a_checkpoint_goes_on_in_another_folder(words, tmp_path, monkeypatch):  # noqa: F811
    words = [*words, *STEADY]
    results_of(words, tmp_path / "long")
    first, *_ = checkpoints = sorted((tmp_path / "long" / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    results_of(words, tmp_path / "run", f"--checkpoint_path={first}")
    assert outcome(tmp_path / "run", "reward_model") == outcome(tmp_path / "long", "reward_model")
    changed = [f"--checkpoint_path={first}", "--learning_rate=1e-4"]
    with monkeypatch.context() as patch:
        patch.setattr(run_chat, "load_preferences", None)
        with pytest.raises(UserError, match=r"learning_rate was 0.01, is 0.0001 \(allowed with resume=changed\)"):
            results_of(words, tmp_path / "other", *changed)
    results_of(words, tmp_path / "other", *changed, "--resume=changed")
    one, other = (load_file(tmp_path / name / "reward_model" / "model.safetensors") for name in ("long", "other"))
    assert any(not torch.equal(value, other[name]) for name, value in one.items())
