"""Rewards against marked errors, by hand, and what stands beside them."""

import pytest
import torch

from chat_task.marked_errors import marked_table, span_figures
from chat_task.ranked_sets import encode_sets
from chat_task.ranking_rows import RankingSet
from common.language_models.replies import ReplyFormat
from common.reply_rewards import RewardReading
from common.reporting.marked_tokens import NAME
from tests.chat_task.test_reward_trainer import lm
from tests.sum_task.tiny import word_tokenizer

FORMAT = ReplyFormat(word_tokenizer(), False)
# "storm" and "fire" are wrong; of the second reply nothing is known, in the third nothing is wrong.
SETS = encode_sets(
    [RankingSet("the", ("storm hit town fire", "flood", "town hit"), (0, 1, 2), spans=(((0, 5), (15, 19)), None, ()))],
    FORMAT,
    RewardReading(),
)
REWARDS = [[[0.1, 0.5, 0.2, 0.3, 9.0], [5.0, 5.0], [0.2, 0.6, 9.0]]]  # the last of each is of the end token


def test_areas_of_marked_replies_alone_without_their_end_tokens():
    table = marked_table(SETS, REWARDS, FORMAT)
    assert [row.is_wrong for row in table] == [[True, False, False, True], [False, False]]
    assert table[0].measures == {"reward": [-0.1, -0.5, -0.2, -0.3], "position": [0, 0.2, 0.4, 0.6], NAME: [0.0] * 4}
    found = span_figures(table)
    # Right tokens: .5, .2, .2, .6. Below each of them is .1; below two of the four is .3.
    assert found["span_auc"] == (1 + 0.5) / 2
    assert found["span_auc_within"] == (1 + 0.5) / 2  # of the one reply with both: .1 below both, .3 below one
    assert (found["span_auc_words"], found["span_auc_names"]) == (found["span_auc"], None)  # a token is a word here
    # Positions of the wrong ones 0 and .6, of the right ones .2, .4, 0 and 1/3.
    assert found["span_baselines"]["position"]["pooled"] == (0.5 / 4 + 1) / 2
    assert found["span_baselines"]["random"]["pooled"] == pytest.approx(0.5, abs=0.15)
    assert (found["marked_replies"], found["wrong_tokens"], found["right_tokens"]) == (2, 2, 4)


def test_a_language_model_says_what_it_expected_of_each_token():
    model = lm()
    [(_, columns, _), _] = marked_table(SETS, REWARDS, FORMAT, model)
    ids = torch.tensor([FORMAT.tokenizer("the storm hit town fire", add_special_tokens=False)["input_ids"]])
    log_p = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
    expected = -log_p.gather(1, ids[0, 1:, None]).squeeze(1)
    torch.testing.assert_close(torch.tensor(columns["log-probability"]), expected)
    torch.testing.assert_close(torch.tensor(columns["entropy"]), -(log_p.exp() * log_p).sum(-1))


def test_nothing_is_said_where_nothing_is_wrong():
    sets = encode_sets([RankingSet("the", ("town", "city"), (0, 1), spans=((), ()))], FORMAT, RewardReading())
    assert span_figures(marked_table(sets, [[[1.0, 2.0], [1.0, 2.0]]], FORMAT)) == {}
    assert span_figures([]) == {}
    all_wrong = encode_sets(
        [RankingSet("the", ("town", "city"), (0, 1), spans=(((0, 4),), ((0, 4),)))], FORMAT, RewardReading()
    )
    assert span_figures(marked_table(all_wrong, [[[1.0, 2.0], [1.0, 2.0]]], FORMAT)) == {}
