from common.reporting.report import Fact
from common.reporting.trust import reward_accuracies


def test_a_notice_stands_where_the_interval_includes_chance_and_only_there():
    results = {
        "reward_rank_accuracy": 0.612, "reward_rank_interval": [0.581, 0.642],
        "reward_swap_accuracy": 0.52, "reward_swap_interval": [0.48, 0.56],
    }  # fmt: skip
    facts, (notice,) = reward_accuracies(results)
    assert facts == {
        "rank accuracy of the reward": Fact("0.612", "95 %: 0.581\N{EN DASH}0.642"),
        "swap accuracy of the reward": Fact("0.520", "95 %: 0.480\N{EN DASH}0.560"),
    }
    assert notice.startswith("The swap accuracy of the reward model, 0.520") and "chance (0.5)" in notice
    assert reward_accuracies({"reward_rank_accuracy": None, "reward_swap_accuracy": float("nan")}) == ({}, [])
