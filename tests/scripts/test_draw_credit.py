"""A picture of what rewards say of a text with wrong words."""

import json

import pytest
import torch

from common.errors import UserError
from scripts.credit_accuracy import MarkedText
from scripts.draw_credit import lines_of, main
from sum_task.loading import load_policy, load_reward_model
from tests.sum_task.tiny import TinyWorld


@pytest.fixture
def a_run(tmp_path):
    tiny = TinyWorld(tmp_path)
    settings = tiny.settings(rew_head="likelihood")
    policy = load_policy(settings.models, settings.text, settings.evaluation)
    torch.manual_seed(0)
    (tmp_path / "mine").mkdir()
    policy.save_pretrained(tmp_path / "mine" / "policy")
    load_reward_model(settings.models, settings.text, policy).save_pretrained(tmp_path / "mine" / "reward_model")
    return tmp_path / "mine"


def test_a_line_for_rewards_and_one_for_advantages(a_run, tmp_path, capsys):
    reward, advantage = lines_of(a_run, MarkedText("the storm hit", ((4, 9),), "a storm"))
    assert (reward.caption, advantage.caption) == ("mine: reward", "mine: advantage")
    assert "".join(reward.tokens) == "".join(advantage.tokens) == "the storm hit"
    assert all(0 < value < 1.32 for value in reward.rewards) and min(advantage.rewards) < max(advantage.rewards)
    file, picture = tmp_path / "errors.jsonl", tmp_path / "credit.png"
    file.write_text(json.dumps({"text": "the storm hit", "spans": [[4, 9]], "prompt": "a storm"}))
    assert main(["--runs", str(a_run), "--input", str(file), "--output", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG") and str(picture) in capsys.readouterr().out
    with pytest.raises(UserError, match="--row: 1 is out of range"):
        main(["--runs", str(a_run), "--input", str(file), "--output", str(picture), "--row", "1"])
