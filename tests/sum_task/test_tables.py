"""The tables that options ask for are refused before anything is learnt where the machine cannot hold them."""

import pytest

from common.errors import UserError
from sum_task import run_sum
from sum_task.run_sum import run

pytestmark = pytest.mark.usefixtures("without_wordnet")


def test_rows_bound_what_a_batch_holds(tiny):
    tables = tiny.settings(per_device_eval_batch_size=10**9, num_beams=3).tables(vocabulary=20, rows=12)
    assert tables["per_device_eval_batch_size x num_beams"] == 12 * 3 * 20
    padded = tiny.settings(per_device_train_batch_size=2, pad_to_max_length="true", reinforce_coeff=0.1)
    tables = padded.tables(vocabulary=20, rows=12)
    assert tables["max_target_length x per_device_train_batch_size"] == 2 * 6 * 20
    assert tables["num_reinforce_samples x max_target_length"] == 2 * 6 * 20 * padded.policy.num_reinforce_samples


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 10**9}, "per_device_eval_batch_size x num_beams: a table of"),
        ({"reward_learning_samples": 10**9}, "reward_learning_samples x max_target_length: a table of"),
        ({"num_reinforce_samples": 10**9, "reinforce_coeff": 0.1}, "num_reinforce_samples x max_target_length: a "),
    ],
)
def test_a_size_beyond_the_machine_is_one_line_before_the_work(tiny, tmp_path, monkeypatch, options, words):
    monkeypatch.setattr(run_sum, "without_training", None)
    with pytest.raises(UserError, match=words):
        run(tiny.settings(output_dir=tmp_path / "run", **options))
    assert list(tmp_path.iterdir()) == []
