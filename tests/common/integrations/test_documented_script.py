"""The script of docs/other_trainers.md, run with tiny models."""

import re
from pathlib import Path

import torch

from common.token_reward_model import TokenRewardModel
from tests import tiny_models

PAGE = Path(__file__).parents[3] / "docs" / "other_trainers.md"


def test_the_script_of_the_documentation_runs(tmp_path):
    (script,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    policy, tokenizer = tiny_models.make("llama")
    tokenizer.pad_token = "<unk>"
    for name in ("policy", "reward"):
        tokenizer.save_pretrained(tmp_path / name)
    policy.save_pretrained(tmp_path / "policy")
    torch.manual_seed(0)
    TokenRewardModel.from_backbone(str(tmp_path / "policy")).save_pretrained(tmp_path / "reward")
    for written, here in (
        ('"HuggingFaceTB/SmolLM2-135M-Instruct"', repr(str(tmp_path / "policy"))),
        ('"outputs/chat/reward_model"', repr(str(tmp_path / "reward"))),
        ('"outputs/chat/policy"', repr(str(tmp_path / "out"))),
        ("max_steps=100", "max_steps=1, use_cpu=True"),
        ("max_completion_length=64", "max_completion_length=4"),
    ):
        assert script.count(written) == 1
        script = script.replace(written, here)
    exec(compile(script, str(PAGE), "exec"), {})
    assert (tmp_path / "out" / "model.safetensors").is_file()
