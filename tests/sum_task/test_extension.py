"""A complete summarization run that goes on with more epochs, and a checkpoint that goes on in another folder."""

from typing import Any

import pytest

from common.errors import UserError
from common.training.checkpoint import latest_checkpoint
from sum_task import run_sum
from sum_task.run_sum import run
from tests.sum_task.test_run_sum import outcome

pytestmark = pytest.mark.usefixtures("without_wordnet")

SHORT: dict[str, Any] = {
    "num_train_epochs": 2, "reward_retrain_epochs": 3, "rew_eval_period": 0.5, "reinforce_coeff": 0.2, "log_every": 2,
    "checkpoint_steps": 1,
}  # fmt: skip
LONG = SHORT | {"num_train_epochs": 4}


@pytest.fixture(scope="module")
def long(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("long") / "run"
    with pytest.MonkeyPatch.context() as patch:
        from tests.sum_task.conftest import stand_in_for_wordnet

        stand_in_for_wordnet(patch)
        run(tiny.settings(output_dir=folder, **LONG))
    return folder


def test_twice_the_epochs_are_the_run_of_twice_the_epochs(tiny, long, tmp_path, monkeypatch):
    run(tiny.settings(output_dir=tmp_path / "run", **SHORT))
    before = outcome(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(run_sum, "load_policy", None)
        with pytest.raises(UserError, match="has num_train_epochs=2; num_train_epochs=1 is no more"):
            run(tiny.settings(output_dir=tmp_path / "run", extend="true", **SHORT | {"num_train_epochs": 1}))
    assert outcome(tmp_path / "run") == before
    run(tiny.settings(output_dir=tmp_path / "run", extend="true", **LONG))
    assert outcome(tmp_path / "run") == outcome(long)


def test_a_checkpoint_goes_on_in_another_folder_and_with_other_options(tiny, long, tmp_path):
    checkpoints = sorted((long / "checkpoints").iterdir())
    run(tiny.settings(output_dir=tmp_path / "run", checkpoint_path=checkpoints[0], **LONG))
    assert outcome(tmp_path / "run") == outcome(long)
    changed = LONG | {"learning_rate": 0.5}
    with pytest.raises(UserError, match=r"learning_rate was .*, is 0.5 \(allowed with resume=changed\)"):
        run(
            tiny.settings(
                output_dir=tmp_path / "other", checkpoint_path=latest_checkpoint(long / "checkpoints"), **changed
            )
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == [".run.lock", "run"]
    last = latest_checkpoint(long / "checkpoints")
    run(tiny.settings(output_dir=tmp_path / "other", checkpoint_path=last, resume="changed", **changed))
    assert outcome(tmp_path / "other")["predictions"] == outcome(long)["predictions"]  # no step was left
