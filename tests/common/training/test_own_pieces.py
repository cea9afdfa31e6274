import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from common.aggregation import aggregate_token_rewards
from common.credit import Judged, reference_weights, sample_weights
from common.errors import UserError
from common.policy_losses import reward_weighted_mle_loss, token_weights
from common.training.own_pieces import check_aggregation, check_guidance, try_out

REWARDS = torch.tensor([[1.0, 3.0, 9.0], [2.0, 4.0, 6.0]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


@pytest.fixture(autouse=True)
def pieces(monkeypatch):
    module: Any = ModuleType("pieces")
    module.hard_max = lambda rewards, mask: rewards.masked_fill(~mask, -torch.inf).amax(-1)
    module.squares = lambda rewards, mask: rewards.square()
    module.minus = lambda rewards, mask: -rewards
    module.one_argument = lambda rewards: rewards.sum(-1)
    module.per_token = lambda rewards, mask: rewards
    module.words = lambda rewards, mask: "good"
    module.nothing = lambda rewards, mask: None
    module.nan = lambda rewards, mask: rewards.sum(-1) / 0 - rewards.sum(-1) / 0
    module.detached = lambda rewards, mask: rewards.detach().sum(-1)
    module.broken = lambda rewards, mask: rewards[7]
    module.version = "1.0"
    monkeypatch.setitem(sys.modules, "pieces", module)


def test_an_aggregation_of_the_user():
    scores = aggregate_token_rewards(REWARDS[None], MASK[None], "pieces:hard_max")
    assert scores.tolist() == [[3, 6]]  # 9 stands at padding
    check_aggregation("agg_func", "pieces:hard_max")
    check_aggregation("agg_func", "sum")


def test_guidance_of_the_user():
    rewards = REWARDS.clone().requires_grad_()
    weights = token_weights(rewards, MASK, "pieces:squares")
    assert weights.tolist() == [[1, 9, 0], [4, 16, 36]] and not weights.requires_grad
    judged = Judged(REWARDS, MASK.bool())
    assert torch.equal(reference_weights("pieces:squares", judged), weights)
    assert torch.equal(sample_weights("pieces:squares", judged), weights)
    # Every token costs ln 2; shares of each sequence sum to one.
    loss = reward_weighted_mle_loss(torch.zeros(2, 3, 2), torch.zeros(2, 3).long(), rewards, MASK, "pieces:squares")
    torch.testing.assert_close(loss, torch.tensor(2.0).log())
    with pytest.raises(ValueError, match="must not be negative"):
        reward_weighted_mle_loss(torch.zeros(2, 3, 2), torch.zeros(2, 3).long(), REWARDS, MASK, "pieces:minus")
    check_guidance("guidance", "pieces:minus", not_negative=False)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("one_argument", "is called with (token_rewards, mask): too many positional arguments"),
        ("per_token", "gives back numbers of shape (2, 2, 3), not (2, 2)"),
        ("words", "gives back str, not numbers"),
        ("nothing", "gives back NoneType, not numbers"),
        ("nan", "a number that is not finite"),
        ("detached", "no gradient leads from"),
        ("broken", "fails on two made-up rows: IndexError"),
        ("version", "'version' is not a function"),
        ("hard_mx", "has no 'hard_mx'; did you mean 'hard_max'"),
    ],
)
def test_what_is_no_aggregation_is_one_line(function, message):
    with pytest.raises(UserError) as error:
        check_aggregation("agg_func", f"pieces:{function}")
    assert str(error.value).startswith(f"agg_func: 'pieces:{function}'") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_guidance_is_one_line():
    with pytest.raises(UserError, match=r"shape \(2,\), not \(2, 3\)"):
        check_guidance("guidance", "pieces:hard_max", not_negative=False)
    with pytest.raises(UserError, match="a negative weight"):
        check_guidance("guidance", "pieces:minus", not_negative=True)


def test_a_module_that_fails_when_it_is_imported(tmp_path, monkeypatch):
    (tmp_path / "breaks.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"agg_func: 'breaks:f': cannot import breaks \(ZeroDivisionError"):
        check_aggregation("agg_func", "breaks:f")


def test_a_module_of_the_current_folder_is_told_how_to_be_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"No module named 'lies_here'.*name its folder in PYTHONPATH"):
        check_aggregation("agg_func", "lies_here:f")
    Path("lies_here.py").write_text("f = sum\n")
    with pytest.raises(UserError, match=r"set PYTHONPATH=[.]$"):
        check_aggregation("agg_func", "lies_here:f")


def test_a_function_of_c_may_say_nothing_of_its_arguments():
    assert try_out("x", "builtins:max", one=1, other=2) == 2
