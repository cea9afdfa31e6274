"""Token rewards in TRL's GRPO: what is relied on there, the advantages, and that they train."""

import importlib.metadata
import inspect
import os
import subprocess
import sys
import textwrap
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from common.errors import UserError
from common.integrations.trl import DenseGRPOTrainer, dense_advantages, rewards_to_go, scalar_reward
from common.reply_rewards import RewardReading
from common.segments import LocationNormalizer, score_increments
from tests import tiny_models

PROMPTS = Dataset.from_dict({"prompt": ["a great film", "the plot is", "long"] * 20})
UNIT = LocationNormalizer(0, 0, 0, 1, 1)
LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo", "luspo")


class EvenIds:
    """A planted reward: 1 for every token of an even id."""

    def score_tokens(self, prompt_ids, completion_ids, masks):
        assert [part.shape for part in masks] == [prompt_ids.shape, completion_ids.shape]
        return (completion_ids % 2 == 0).float()


def lengths(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
    return [float(len(ids)) + sum(ids) % 7 for ids in completion_ids]


def options(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 6,
        "max_steps": 2, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "report_to": "none",
        "save_strategy": "no", "logging_steps": 1, "use_cpu": True, "disable_tqdm": True, "seed": 3,
    } | changes  # fmt: skip


def parts(folder: Path, **changes: Any) -> dict[str, Any]:
    """What any of these trainers is made of."""
    model, tokenizer = tiny_models.make("llama")
    tokenizer.pad_token, tokenizer.padding_side = "<unk>", "left"
    args = GRPOConfig(**options(folder, **changes))
    return {"model": model, "args": args, "train_dataset": PROMPTS, "processing_class": tokenizer}


def trained(trainer: Any) -> dict[str, torch.Tensor]:
    trainer.train()
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def release(change: str) -> str:
    return f"TRL {importlib.metadata.version('trl')} {change}; common/integrations/trl.py is written for 1.0 to 1.16"


def test_trl_still_is_what_the_integration_relies_on(tmp_path):
    for method in ("_generate_and_score_completions", "_compute_loss"):
        assert hasattr(GRPOTrainer, method), release(f"has no GRPOTrainer.{method}")
    asked = list(inspect.signature(GRPOTrainer._generate_and_score_completions).parameters)
    assert asked == ["self", "inputs"], release(f"calls _generate_and_score_completions with {asked}")
    trainer: Any = GRPOTrainer(reward_funcs=lengths, **parts(tmp_path))
    trainer.model.train()
    output = trainer._generate_and_score_completions([{"prompt": "a great film"}] * 8)
    needed = {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages"}
    assert needed <= output.keys(), release(f"gives no {', '.join(needed - output.keys())}")
    assert output["advantages"].shape == (8,), release(f"gives advantages of shape {output['advantages'].shape}")
    for name in ("num_generations", "num_generations_eval", "scale_rewards", "eos_token_ids", "_metrics", "_logs"):
        assert hasattr(trainer, name), release(f"has no GRPOTrainer.{name}")
    logged = trainer._metrics["train"].keys()
    for name in ("reward", "reward_std", "frac_reward_zero_std", "rewards/lengths/mean", "rewards/lengths/std"):
        assert name in logged, release(f"logs no {name}")
    trainer.current_gradient_accumulation_steps = 1
    torch.manual_seed(0)
    per_reply = trainer._compute_loss(trainer.model, output)
    output["advantages"] = output["advantages"][:, None].expand(output["completion_mask"].shape)
    try:
        per_token = trainer._compute_loss(trainer.model, output)
    except (RuntimeError, ValueError) as error:
        pytest.fail(release(f"takes no advantages of shape (B, T): {error}"))
    assert torch.equal(per_reply, per_token), release("means something else by advantages of shape (B, T)")


class Expanded(GRPOTrainer):
    def _generate_and_score_completions(self, inputs):
        output = super()._generate_and_score_completions(inputs)
        output["advantages"] = output["advantages"][:, None].expand(output["completion_mask"].shape)
        return output


@pytest.mark.parametrize("loss", ["grpo", "dapo", "cispo"])
def test_expanded_advantages_give_the_same_parameters_to_the_bit(tmp_path, loss):
    plain = trained(GRPOTrainer(reward_funcs=lengths, **parts(tmp_path, loss_type=loss)))
    expanded = trained(Expanded(reward_funcs=lengths, **parts(tmp_path, loss_type=loss)))
    start = parts(tmp_path)["model"].state_dict()
    assert all(torch.equal(plain[name], expanded[name]) for name in plain)
    assert not all(torch.equal(plain[name], start[name]) for name in plain)


def test_by_sequence_with_the_group_baseline_it_is_plain_grpo(tmp_path):
    reading = RewardReading("sequence")
    ours = DenseGRPOTrainer(scorer=EvenIds(), reading=reading, baseline="group", **parts(tmp_path))
    end = trained(ours)
    made = parts(tmp_path)
    plain = GRPOTrainer(reward_funcs=scalar_reward(EvenIds(), made["processing_class"], reading), **made)
    torch.testing.assert_close(end, trained(plain))
    logs = [[row for row in trainer.state.log_history if "reward" in row] for trainer in (ours, plain)]
    assert [row["reward"] for row in logs[0]] == pytest.approx([row["reward"] for row in logs[1]])
    assert [row["frac_reward_zero_std"] for row in logs[0]] == [row["frac_reward_zero_std"] for row in logs[1]]


def test_paid_by_reply_it_is_plain_grpo_on_the_score_of_the_token_rewards(tmp_path):
    end = trained(DenseGRPOTrainer(scorer=EvenIds(), payment="reply", baseline="group", **parts(tmp_path)))
    made = parts(tmp_path)
    plain = trained(GRPOTrainer(reward_funcs=scalar_reward(EvenIds(), made["processing_class"]), **made))
    torch.testing.assert_close(end, plain)
    by_token = trained(DenseGRPOTrainer(scorer=EvenIds(), baseline="group", **parts(tmp_path)))
    assert not all(torch.equal(end[name], by_token[name]) for name in end)


def test_a_discount_reaches_the_advantages(tmp_path):
    batch: list[dict[str, Any]] = [{"prompt": "a great film"}] * 8
    trainer = DenseGRPOTrainer(scorer=EvenIds(), discount=0.0, **parts(tmp_path))
    output = trainer._generate_and_score_completions(batch)
    own = ((output["completion_ids"] % 2 == 0) & (output["completion_ids"] != 2)).float()
    expected = dense_advantages(own, output["completion_mask"].bool(), 4, "leave-one-out", "group", discount=0.0)
    torch.testing.assert_close(output["advantages"], expected)


def test_a_planted_token_reward_is_learnt(tmp_path):
    trainer = DenseGRPOTrainer(
        scorer=EvenIds(), **parts(tmp_path, max_steps=30, num_generations=8, per_device_train_batch_size=32)
    )
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert rewards[0] < 0.6
    assert rewards[-1] > 0.85


@pytest.mark.parametrize("loss", LOSSES)
def test_each_loss_type_runs_in_several_iterations_with_accumulation_and_evaluation(tmp_path, loss):
    changes = {
        "loss_type": loss, "num_iterations": 2, "gradient_accumulation_steps": 2,
        "eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 8,
    }  # fmt: skip
    made = parts(tmp_path, **changes)
    start = {name: value.clone() for name, value in made["model"].state_dict().items()}
    trainer = DenseGRPOTrainer(scorer=EvenIds(), eval_dataset=PROMPTS.select(range(2)), **made)
    end = trained(trainer)
    assert all(value.isfinite().all() for value in end.values())
    assert any(not torch.equal(end[name], start[name]) for name in end)
    assert any("eval_reward" in row for row in trainer.state.log_history)


@pytest.mark.parametrize("granularity", ["token", "segment", "sequence"])
def test_arms_differ_in_the_advantages_alone(tmp_path, granularity):
    batch: list[dict[str, Any]] = [{"prompt": "a great film"}] * 8
    plain = GRPOTrainer(reward_funcs=lengths, **parts(tmp_path))._generate_and_score_completions(batch)
    reading = RewardReading(granularity, cut=3.5 if granularity == "segment" else None, normalizer=UNIT)
    surprised = tiny_models.make("llama")[0]
    trainer = DenseGRPOTrainer(scorer=EvenIds(), reading=reading, entropy_model=surprised, **parts(tmp_path))
    output = trainer._generate_and_score_completions(batch)
    assert torch.equal(output["completion_ids"], plain["completion_ids"])
    varies = (output["advantages"] - output["advantages"][:, :1])[output["completion_mask"].bool()].abs().max() > 1e-6
    assert bool(varies) == (granularity != "sequence")


def test_truncated_replies_that_trl_masks_take_no_part(tmp_path):
    trainer = DenseGRPOTrainer(scorer=EvenIds(), **parts(tmp_path, mask_truncated_completions=True))
    output = trainer._generate_and_score_completions([{"prompt": "a great film"}] * 8)
    truncated = ~output["completion_mask"].bool().any(-1)
    assert bool(truncated.any())
    assert bool((output["advantages"][truncated] == 0).all())


def test_advantages_by_hand():
    rewards = torch.tensor([[1.0, 2, 4], [3, 5, 9], [0, 6, 9], [1, 1, 1.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    # To go: 7 6 4 | 8 5 . | 0 . . | none.
    group = [[2, 7 / 3, 8 / 3], [3, 4 / 3, 0], [-5, 0, 0], [0, 0, 0]]
    others = [[3, 3.5, 4], [4.5, 2, 0], [-7.5, 0, 0], [0, 0, 0]]  # at the second place 6 - (5 + 0) / 2
    torch.testing.assert_close(dense_advantages(rewards, mask, 4, "group", "none"), torch.tensor(group))
    torch.testing.assert_close(dense_advantages(rewards, mask, 4, "leave-one-out", "none"), torch.tensor(others))
    deviation = (torch.tensor(group).square().sum() / 5).sqrt()
    scaled = dense_advantages(rewards, mask, 4, "group", "group")
    torch.testing.assert_close(scaled, torch.tensor(group) / (deviation + 1e-4))
    apart = torch.cat([rewards, 100 + rewards]), torch.cat([mask, mask])
    torch.testing.assert_close(dense_advantages(*apart, 4, "group", "none")[:4], torch.tensor(group))
    torch.testing.assert_close(dense_advantages(*apart, 4, "group", "group")[:4], scaled)


@pytest.mark.parametrize("payment", ["reward", "increment"])
def test_leave_one_out_gives_the_policy_gradient_without_bias(payment):
    # A policy of two tokens and the end, whose logits depend on the tokens so far, at most three long. The expectation
    # over all groups of two replies is exact; so is the gradient of the expected score.
    torch.manual_seed(1)
    logits = {
        s: torch.randn(3, dtype=torch.float64, requires_grad=True) for n in range(3) for s in product((0, 1), repeat=n)
    }
    worth = {s: torch.randn(()) for n in range(1, 4) for s in product((0, 1), repeat=n)}
    replies = [s for n in range(4) for s in product((0, 1), repeat=n)]

    def log_probabilities(reply):
        ended = reply if len(reply) == 3 else (*reply, 2)
        return torch.stack([logits[reply[:t]].log_softmax(0)[token] for t, token in enumerate(ended)])

    width = torch.arange(3)
    rewards = torch.stack(
        [torch.stack([worth[r[: t + 1]] if t < len(r) else torch.tensor(0.0) for t in width]) for r in replies]
    )
    ends = torch.stack([width < len(r) for r in replies])
    mask = torch.stack([width < min(len(r) + 1, 3) for r in replies])
    scores = rewards.sum(-1)
    if payment == "increment":
        rewards = score_increments(rewards, ends)
        scores = scores / ends.sum(-1).clamp(min=1)
    torch.testing.assert_close(rewards.sum(-1), scores)
    logs = [log_probabilities(reply) for reply in replies]
    chance = torch.stack([row.sum().exp() for row in logs])
    assert chance.sum().item() == pytest.approx(1)
    wanted = torch.autograd.grad((chance * scores).sum(), [*logits.values()], retain_graph=True)
    surrogate = torch.zeros((), dtype=torch.float64)
    for i, j in product(range(len(replies)), repeat=2):
        both = [i, j]
        advantages = dense_advantages(rewards[both], mask[both], 2, "leave-one-out", "none")
        for row, k in enumerate(both):
            surrogate += (chance[i] * chance[j]).detach() * (advantages[row, : len(logs[k])] * logs[k]).sum() / 2
    found = torch.autograd.grad(surrogate, [*logits.values()])
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_rewards_to_go_by_hand():
    rewards = torch.tensor([[1.0, 2, 4], [0, -8, 0]])
    assert rewards_to_go(rewards).tolist() == [[7, 6, 4], [-8, -8, 0]]
    assert rewards_to_go(rewards, 0.5).tolist() == [[3, 4, 4], [-4, -8, 0]]
    assert torch.equal(rewards_to_go(rewards, 0.0), rewards)
    many = torch.randn(2, 3, 40, dtype=torch.float64)
    torch.testing.assert_close(rewards_to_go(many, 1 - 1e-12), rewards_to_go(many))
    mask = torch.ones(2, 3).bool()
    assert dense_advantages(rewards, mask, 2, "group", "none", discount=0.0).tolist() == [[0.5, 5, 2], [-0.5, -5, -2]]
    with pytest.raises(ValueError, match="discount: must be from 0 to 1"):
        dense_advantages(rewards, mask, 2, "group", "none", discount=1.5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reading": RewardReading("segment", cut=2.0)}, "needs entropy_model"),
        ({"tools": [len]}, "takes no tools"),
    ],
)
def test_what_it_cannot_do_is_one_line(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        DenseGRPOTrainer(scorer=EvenIds(), **parts(tmp_path) | changes)


def test_a_scalar_reward_serves_rloo(tmp_path):
    made = parts(tmp_path)
    args = RLOOConfig(**options(tmp_path, max_steps=25, num_generations=8, per_device_train_batch_size=32, beta=0.0))
    trainer = RLOOTrainer(reward_funcs=scalar_reward(EvenIds(), made["processing_class"]), **made | {"args": args})
    trainer.train()
    rewards = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    assert rewards[-1] > rewards[0] + 0.15


TWO_PROCESSES = """
    import sys
    from pathlib import Path
    import torch
    from common.integrations.trl import DenseGRPOTrainer, dense_advantages
    from tests.common.integrations.test_trl import EvenIds, parts

    folder = Path(sys.argv[1])
    trainer = DenseGRPOTrainer(scorer=EvenIds(), baseline="group", **parts(folder, per_device_train_batch_size=2))
    rank = trainer.accelerator.process_index
    assert trainer.accelerator.num_processes == 2
    torch.manual_seed(rank)
    trainer.generation_config.max_new_tokens = 3 + 3 * rank  # the processes' replies are of different length
    output = trainer._generate_and_score_completions([{"prompt": "a great film"}] * 2)
    torch.save(output, folder / f"{rank}.pt")
    trainer.train()
    torch.save(trainer.model.state_dict(), folder / f"model{rank}.pt")
"""


@pytest.mark.slow
def test_members_of_a_group_on_two_processes_are_compared(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(textwrap.dedent(TWO_PROCESSES), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
         str(script), str(tmp_path)],
        check=True, env=environment, timeout=300,
    )  # fmt: skip
    halves = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    width = max(half["completion_ids"].shape[1] for half in halves)
    ids, mask, found = (
        torch.cat([torch.nn.functional.pad(half[name], (0, width - half[name].shape[1])) for half in halves])
        for name in ("completion_ids", "completion_mask", "advantages")
    )
    assert halves[0]["completion_ids"].shape != halves[1]["completion_ids"].shape
    rewards = ((ids % 2 == 0) & (ids != 2)).float()  # the end token, id 2, belongs to no segment
    torch.testing.assert_close(found, dense_advantages(rewards, mask.bool(), 4, "group", "group"))
    models = [torch.load(tmp_path / f"model{rank}.pt") for rank in (0, 1)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
