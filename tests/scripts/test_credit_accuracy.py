"""Areas under the curve on texts with marked spans."""

import argparse
import json
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from common.errors import UserError
from common.language_models.replies import ReplyFormat
from common.reporting.marked_tokens import NAME, MarkedRow, area_under_curve, areas, by_words, marked, marked_row
from common.token_reward_model import TokenRewardModel
from scripts.credit_accuracy import MarkedText, _load, main, suspicions
from sum_task.data import Row
from sum_task.reward_model import SummaryRewardModel
from sum_task.score_tokens import text_rewards
from sum_task.text_format import TextFormat
from tests.sum_task.tiny import save_llama, save_t5, word_tokenizer


def measured_row(wrong, values):
    """Of words of one token each, none of them a name."""
    return MarkedRow(wrong, {"reward": values, NAME: [0.0] * len(wrong)}, list(range(len(wrong))))


def test_areas_by_hand():
    # Of the three right ones (0.1, 0.2, 0.9) two are below 0.5; one is below 0.2, and one ties with it.
    found = area_under_curve([0.5, 0.2, 0.1, 0.2, 0.9], [True, True, False, False, False])
    assert found == pytest.approx((2 / 3 + 1.5 / 3) / 2)
    assert area_under_curve([3.0, 1.0], [True, False]) == 1
    assert area_under_curve([3.0, 1.0], [False, False]) is None
    texts = [
        measured_row([True, False], [2.0, 1.0]),
        measured_row([True, False], [5.0, 9.0]),
        measured_row([False], [0.0]),
    ]
    pooled = pytest.approx((2 / 3 + 2 / 3) / 2)
    assert areas(texts)["reward"] == {
        "pooled": pooled, "within texts": 0.5, "words": pooled, "words within texts": 0.5, "names and numbers": None
    }  # fmt: skip


def test_an_area_is_the_share_of_pairs_in_order_and_random_numbers_have_one_half():
    draw = random.Random(3)
    texts = [[draw.random() < 0.2 for _ in range(12)] for _ in range(30)]
    measured = [measured_row(wrong, [float(draw.randint(0, 4) + is_wrong) for is_wrong in wrong]) for wrong in texts]
    found = areas(measured)
    inside, outside = (
        [value for row in measured for value, w in zip(row.measures["reward"], row.is_wrong, strict=True) if w is kind]
        for kind in (True, False)
    )
    pairs = [(a > b) + (a == b) / 2 for a in inside for b in outside]
    assert found["reward"]["pooled"] == pytest.approx(sum(pairs) / len(pairs))
    # One draw is 0.04 from one half on average here, the mean over a hundred ten times less.
    assert found == areas(measured)
    assert found["random"].pop("names and numbers") is None
    for value in found["random"].values():
        assert value == pytest.approx(0.5, abs=0.015)


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_texts_are_tokens_as_in_the_run(tmp_path, kind):
    backbone = (save_t5 if kind == "t5" else save_llama)(tmp_path / "backbone", word_tokenizer())
    model = TokenRewardModel.from_backbone(backbone, head_hidden_size=8, head_init_gain=1.0)
    text_format = TextFormat(word_tokenizer(), kind == "t5", "summarize : ", " .", 8)
    summaries = SummaryRewardModel(model, text_format, text_format)
    summaries.save_pretrained(tmp_path / "reward_model")
    article, text = "the flood hit the town in the north on monday", "two killed in flood"
    options = argparse.Namespace(reward_model=str(tmp_path / "reward_model"), tokenizer=None)
    reward, reader = _load(options, None)
    inputs, _, first = reader.inputs(MarkedText(text, (), article), torch.device("cpu"))
    with torch.no_grad():
        found = reward(**inputs, targets_from=first)[0, first:]
    [(_, expected)] = text_rewards(summaries, [Row(article, text)])
    torch.testing.assert_close(found, torch.tensor(expected[:-1]))  # the end token is none of the text


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_replies_are_read_in_the_template_and_cut_as_by_their_run(tmp_path, kind):
    backbone = (save_t5 if kind == "t5" else save_llama)(tmp_path / "backbone", word_tokenizer())
    model = TokenRewardModel.from_backbone(backbone, head="likelihood")
    model.save_pretrained(tmp_path / "reward_model")
    reply_format = ReplyFormat(word_tokenizer(), kind == "t5", "two {prompt} killed", 6, 3)
    reply_format.save(tmp_path / "reward_model")
    row = MarkedText("two killed in flood", (), "the flood hit the town in the north on monday")
    options = argparse.Namespace(reward_model=str(tmp_path / "reward_model"), tokenizer=None)
    reward, reader = _load(options, None)
    lm = (AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM).from_pretrained(backbone).eval()
    asked = suspicions(row, reader, reward, lm)
    found = asked.values
    [scored] = reward.score_texts([row.text], [row.prompt])
    assert asked.offsets == scored.offsets == [(0, 3), (4, 10), (11, 13)]
    assert found["reward"] == pytest.approx([-value for value in scored.rewards], abs=1e-6)
    # What the language model's own token would have on average, by brute force over the vocabulary.
    inputs, _, first = reader.inputs(row, torch.device("cpu"))
    with torch.no_grad():
        p = lm(**inputs).logits[0, first - 1 : -1].softmax(-1)
        expected = (p * reward.rewards_of_all(targets_from=first, **inputs)[0]).sum(-1)
    own = p[range(len(asked.ids)), asked.ids]
    assert found["advantage"] == pytest.approx((expected + torch.tensor(found["reward"])).tolist(), abs=1e-5)
    assert found["excess surprise"] == pytest.approx((-own.log() + (p * p.log()).sum(-1)).tolist(), abs=1e-5)


def test_a_token_is_wrong_where_it_shares_more_than_blanks_with_a_span():
    text = "ab cd  ef"
    offsets = [(0, 2), (2, 5), (5, 7), (6, 9)]
    assert marked(offsets, text, [(0, 3), (8, 9)]) == [True, False, None, True]


def test_words_are_as_suspicious_as_their_most_suspicious_token():
    text = "It cost £1,200 in Bad-Ems."
    offsets = [(0, 2), (2, 7), (7, 9), (9, 10), (10, 14), (14, 17), (17, 21), (21, 25), (25, 26), (26, 26)]
    values = [0.0, 1, 2, 3, 9, 1, 5, 4, 0, 7]  # the last is of an end token
    row = marked_row(offsets, text, [(9, 14)], {"reward": values})
    # "£" stands alone, "1,200" and "Bad-Ems" are one word each.
    assert row.words == [0, 1, 2, 3, 3, 4, 5, 5, 6]
    assert row.measures[NAME] == [1, 0, 0, 1, 1, 0, 1, 1, 0]
    words = by_words(row)
    assert words.is_wrong == [False, False, False, True, False, False, False]
    assert words.measures == {"reward": [0, 1, 2, 9, 1, 5, 0], NAME: [1, 0, 0, 1, 0, 1, 0]}
    found = areas([row])
    # Tokens: 3 is above 5 of 7 others, 9 above all; words: 9 above all; names: the one wrong among three.
    assert found["reward"]["pooled"] == pytest.approx((5 / 7 + 1) / 2)
    assert found["reward"]["words"] == found["reward"]["names and numbers"] == 1
    assert found[NAME]["words"] == pytest.approx((4 + 2 / 2) / 6)
    assert found[NAME]["names and numbers"] == 0.5


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_planted_reward_is_found(tmp_path, capsys, kind):
    save = save_t5 if kind == "t5" else save_llama
    backbone = save(tmp_path / "backbone", word_tokenizer())
    reward = TokenRewardModel.from_backbone(backbone, head="likelihood")
    reward.save_pretrained(tmp_path / "run" / "reward_model")
    (tmp_path / "run" / "results.json").write_text(json.dumps({"reward_model": backbone}))
    token = word_tokenizer().convert_tokens_to_ids("flood")
    family = type(reward.backbone)
    plain = family.forward

    def forward(self, **inputs):  # a language model that thinks that "flood" comes nowhere
        output = plain(self, **inputs)
        output.logits = output.logits.index_add(
            -1, torch.tensor([token]), torch.full_like(output.logits[..., :1], -9.0)
        )
        return output

    texts = ["the storm hit a town", "a flood hit the city", "two killed in the flood"]
    rows = [
        {"text": t, "prompt": "north", "spans": [[t.index("flood"), t.index("flood") + 5]] if "flood" in t else []}
        for t in texts
    ]
    rows[1]["right"] = ["storm"]
    file = tmp_path / "errors.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--reward_model", str(tmp_path / "run/reward_model"), "--input", str(file)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "forward", forward)
        assert main([*words, "--output", str(tmp_path / "out"), "--device", "cpu"]) == 0
    table = json.loads((tmp_path / "out" / "table.json").read_text())
    assert table["swaps"] == {"reward": 1.0, "log-probability": 1.0, "spans": 1}
    found = table["areas"]
    names = ["reward", "advantage", "log-probability", "excess surprise", "entropy", "position", NAME, "random"]
    assert list(found) == names
    for name in names[:4]:
        assert found[name].pop("names and numbers") is None  # there are none
        assert set(found[name].values()) == {1.0}
    # "flood" is the second of five words and the last: above 1 and all 4 of the others in its text.
    assert found["position"]["within texts"] == pytest.approx((1 / 4 + 1) / 2)
    assert "| reward | 1.000 | 1.000 | 1.000 | 1.000 | - |" in capsys.readouterr().out
    assert (tmp_path / "out" / "credit.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a b"}', "line 1: needs a text and spans"),
        ('{"text": "a b", "spans": [[1, 9]]}', "line 1: a span lies outside of the text's 3 characters"),
        ('{"text": "a b", "spans": []}', "holds no text with a span"),
        ('{"text": "a b", "spans": [[0, 1]], "right": ["c", "d"]}', "right must hold a text for each of the 1 spans"),
        ("[", "line 1: not JSON"),
    ],
)
def test_mistakes_are_told_by_line(tmp_path, line, message):
    file = tmp_path / "errors.jsonl"
    file.write_text(line)
    with pytest.raises(UserError, match=message):
        main(["--reward_model", "nowhere", "--input", str(file), "--output", str(tmp_path)])
