"""Low-rank adapters; these tests need the optional package peft."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from sum_task.run_sum import run

pytest.importorskip("peft")


@pytest.mark.usefixtures("without_wordnet")
@pytest.mark.parametrize("name", ["t5", "llama"])
def test_adapters_are_trained_and_merged_into_the_saved_folders(tiny, tmp_path, name):
    from sum_task.generate import summarize
    from sum_task.policy import SummaryPolicy
    from sum_task.reward_model import SummaryRewardModel

    model = getattr(tiny, name)
    out = tmp_path / "run"
    options = {"model_name_or_path": model, "learning_rate": 0.05, "num_train_epochs": 3, "rew_learning_rate": 0.1}
    run(tiny.settings(output_dir=out, lora_rank=2, **options))
    before = tiny.policy(**options).lm.state_dict()
    policy = SummaryPolicy.from_pretrained(str(out / "policy"))
    after = policy.lm.state_dict()
    assert before.keys() == after.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed
    assert not any("norm" in key or "embed" in key or "lm_head" in key for key in changed)
    difference = [before[key] - after[key] for key in changed]
    assert all(torch.linalg.matrix_rank(d, atol=1e-5) <= 2 for d in difference)
    SummaryRewardModel.from_pretrained(str(out / "reward_model"))
    import json

    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert summarize(policy, [row["source"] for row in rows], 6) == [row["prediction"] for row in rows]


@pytest.mark.usefixtures("without_wordnet")
def test_alpha_scales_the_adapters(tiny, tmp_path):
    ends = []
    for alpha in (1, 64):
        out = tmp_path / str(alpha)
        run(tiny.settings(output_dir=out, guidance="none", lora_rank=2, lora_alpha=alpha))
        model = AutoModelForSeq2SeqLM.from_pretrained(out / "policy")
        ends.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert not torch.equal(*ends)
