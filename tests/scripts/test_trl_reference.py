"""TRL's RewardTrainer as the reference for rewards of replies."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from chat_task.evaluation import FIELDS, MISSING
from chat_task.ranked_sets import EncodedSet
from chat_task.ranking_rows import RankingSet
from common.errors import UserError
from scripts.benchmarks import trl_reference
from tests.chat_task.tiny import ranking_sets
from tests.sum_task.tiny import save_llama, word_tokenizer

pytest.importorskip("trl")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_llama(tmp_path_factory.mktemp("llama") / "lm", word_tokenizer())


def test_it_learns_from_the_pairs_of_the_same_rankings_and_is_judged_on_the_held_out_ones(llama, tmp_path, capsys):
    rows = [{"prompt": s.prompt, "completions": s.replies, "scores": s.scores} for s in ranking_sets(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = [
        f"--train_file={tmp_path / 'rows.jsonl'}", f"--model_name_or_path={llama}", "--validation_share=0.2",
        "--max_prompt_length=16", "--max_reply_length=16", "--pairs_per_set=2", "--learning_rate=3e-2",
        "--per_device_train_batch_size=8", "--gradient_accumulation_steps=1", "--num_train_epochs=4", "--device=cpu",
    ]  # fmt: skip
    assert trl_reference.main([*options, "--seeds", "0", "1", "--output", str(tmp_path / "found.json")]) == 0
    assert "n = 2" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())["seeds"]
    assert [seed["seed"] for seed in found] == [0, 1]
    for seed in found:
        assert seed["train_pairs"] <= 2 * 48 and seed["pairs"] > 12
        assert seed["rank_accuracy"] > 0.6
        assert seed["rank_low"] <= seed["rank_accuracy"] <= seed["rank_high"]


def test_a_reply_is_scored_at_its_last_token_whatever_stands_beside_it(llama):
    model = AutoModelForSequenceClassification.from_pretrained(llama, num_labels=1).eval()
    model.config.pad_token_id = 0
    replies = [[5, 6], [7, 8, 9], [4]]
    source = RankingSet("p", ("a", "b", "c"), (2.0, 1.0, 0.0))
    pair = EncodedSet(RankingSet("p", ("a", "b"), (0.0, 1.0)), [3], replies[:2], [[1], [2]])
    table = trl_reference.scores(model, [EncodedSet(source, [3, 4], replies, [[1], [2], [0]]), pair], pad=0)
    with torch.no_grad():
        alone = [float(model(input_ids=torch.tensor([[3, 4, *ids]])).logits) for ids in replies]
    assert table[0, :, FIELDS.index("score")] == pytest.approx(alone, abs=1e-5)
    assert table[0, :, FIELDS.index("preference")].tolist() == [2, 1, 0]
    assert table[0, :, FIELDS.index("tokens")].tolist() == [2, 3, 1]
    assert (table[1, 2] == MISSING).all()


def test_a_mistake_in_an_option_of_the_run_is_one_line():
    with pytest.raises(UserError, match="--pairs_per_sets"):
        trl_reference.main(["--pairs_per_sets=2", "--train_file=x"])
