"""All tasks on a GPU that is pretended: no call mixes devices, and the CPU waits for the GPU only so often."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import T5Config

from chat_task import reward_trainer as reply_reward
from chat_task.command_line import read_command as read_chat_command
from chat_task.run_chat import run as run_replies
from common.policy_losses import negative_entropy, reinforce_loss, reward_weighted_mle_loss
from common.token_reward_model import TokenRewardConfig, TokenRewardModel
from common.training.runtime import start_runtime
from prompt_task import policy_trainer as prompt_policy
from prompt_task import reward_trainer as prompt_reward
from prompt_task.prompt_policy import PromptPolicy
from prompt_task.run_fsc import run as run_prompts
from sum_task import policy_loss, ranked_summaries
from sum_task import policy_trainer as summary_policy
from sum_task import reward_trainer as summary_reward
from sum_task.data import load_splits
from sum_task.run_sum import run as run_summaries
from sum_task.sampling import sample_summaries
from sum_task.tokenizing import tokenize
from tests import tiny_models
from tests.chat_task.test_run_chat import words  # noqa: F401  a fixture
from tests.pretended_device import DEVICE, MixedDevices, PretendedDevice, pretended_device
from tests.sum_task.conftest import stand_in_for_wordnet
from tests.sum_task.tiny import TinyWorld

SIZE: dict[str, Any] = {
    "vocab_size": 25, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2,
    "decoder_start_token_id": 0,
}  # fmt: skip


@pytest.fixture
def device() -> Iterator[PretendedDevice]:
    with pretended_device() as mode:
        yield mode


class TestDevice:
    def test_tensors_say_where_they_are(self, device):
        there = torch.ones(2, device="cuda")
        assert (there.device, there.is_cuda, torch.ones(2).device.type) == (DEVICE, True, "cpu")
        assert (there + 1).device == there[0].device == torch.zeros_like(there).device == DEVICE
        assert there.cpu().device.type == there.to("cpu").device.type == "cpu"
        assert torch.tensor([1]).to(there).device == there.new_zeros(3).device == DEVICE

    def test_matrix_products_are_tf32_unless_said_otherwise(self, device):
        try:
            start_runtime(0, "cuda")
            assert torch.get_float32_matmul_precision() == "high"
            start_runtime(0, "cuda", matmul_precision="highest")
            assert torch.get_float32_matmul_precision() == "highest"
        finally:
            torch.set_float32_matmul_precision("highest")

    def test_modules_and_their_gradients_move(self, device):
        model = torch.nn.Linear(2, 1).to("cuda")
        assert {p.device for p in model.parameters()} == {DEVICE}
        model(torch.ones(1, 2, device="cuda")).sum().backward()
        assert {p.grad.device for p in model.parameters() if p.grad is not None} == {DEVICE}
        optimizer = torch.optim.Adam(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        assert device.count == 0

    @pytest.mark.parametrize(
        "call",
        [
            lambda there, here: there + here,
            lambda there, here: torch.cat([there, here]),
            lambda there, here: here[there.long()],
            lambda there, here: torch.nn.Linear(2, 1)(there),
            lambda there, here: there.uniform_(generator=torch.Generator()),
            lambda there, here: torch.rand(2, device="cuda", generator=torch.Generator()),
            lambda there, here: torch.multinomial(there, 1, generator=torch.Generator()),
        ],
    )
    def test_mixtures_are_errors(self, device, call):
        with pytest.raises(MixedDevices):
            call(torch.ones(2, device="cuda"), torch.ones(2))

    def test_what_a_gpu_takes_from_the_cpu(self, device):
        there = torch.ones(3, device="cuda")
        assert (there * torch.tensor(2.0)).device == there[torch.tensor([0, 2])].device == DEVICE
        there.copy_(torch.zeros(3))

    @pytest.mark.parametrize(
        ("call", "count"),
        [
            (lambda x: x.sum().item(), 1),
            (lambda x: x.tolist(), 1),
            (lambda x: bool((x > 0).all()), 1),
            (lambda x: float(x.max()), 1),
            (lambda x: x.cpu(), 1),
            (lambda x: x.to("cpu"), 1),
            (lambda x: x.nonzero(), 1),
            (lambda x: x[x > 0], 1),
            (lambda x: torch.where(x > 0), 1),
            (lambda x: torch.unique(x), 1),
            (lambda x: x.repeat_interleave(x.long()), 1),
            (lambda x: torch.equal(x, x), 1),
            (lambda x: x[1:].masked_fill(x[1:] > 0, 0).softmax(-1), 0),
            (lambda x: x[torch.tensor([0, 1])], 0),
            (lambda x: x.repeat_interleave(2), 0),
            (lambda x: torch.where(x > 0, x, 1), 0),
        ],
    )
    def test_waiting_is_counted(self, device, call, count):
        call(torch.ones(3, device="cuda"))
        assert device.count == count


def test_whoever_knows_the_masks_on_the_cpu_waits_for_nothing():
    torch.manual_seed(0)
    logits, rewards, tokens = torch.randn(3, 4, 25), torch.rand(3, 4), torch.randint(25, (3, 4))
    mask = torch.arange(4) < torch.tensor([[4], [2], [3]])
    model = TokenRewardModel(TokenRewardConfig(backbone=T5Config(**SIZE).to_diff_dict(), head_hidden_size=8)).eval()
    model.checks_start = False

    def everything(place: str, mask_place: str) -> list[torch.Tensor]:
        model.to(place)
        there, known = [tensor.to(place) for tensor in (logits, rewards, tokens)], mask.to(mask_place)
        with torch.no_grad():
            return [
                reward_weighted_mle_loss(there[0], there[2], there[1], known),
                reinforce_loss(there[0], there[2], there[1], known),
                negative_entropy(there[0], known),
                model(
                    input_ids=there[2], attention_mask=known, decoder_input_ids=there[2], decoder_attention_mask=known,
                ),
            ]  # fmt: skip

    expected = everything("cpu", "cpu")
    with pretended_device() as mode:
        everything("cuda", "cpu")  # the model is asked which masks it takes
        before = mode.count
        found = everything("cuda", "cpu")
        assert mode.count == before, mode.waits
        assert [value.device for value in found] == [DEVICE] * 4
        everything("cuda", "cuda")
        assert mode.count > before
    torch.testing.assert_close(found, expected)


class Waits:
    """How often the CPU waited in each call of some methods."""

    def __init__(self, mode: PretendedDevice, patch: pytest.MonkeyPatch) -> None:
        self.mode = mode
        self.patch = patch
        self.counts: dict[str, list[int]] = {}

    def of(self, owner: Any, name: str) -> None:
        function = getattr(owner, name)
        found = self.counts.setdefault(f"{owner.__name__}.{name}", [])

        def counted(*args: Any, **named: Any) -> Any:
            before = self.mode.count
            result = function(*args, **named)
            found.append(self.mode.count - before)
            return result

        self.patch.setattr(owner, name, counted)

    def most(self) -> dict[str, int]:
        """The largest count of each, by the method's name."""
        return {name: max(found) for name, found in self.counts.items() if found}


@pytest.fixture
def waits(device, monkeypatch):
    return Waits(device, monkeypatch)


# The figures that these two hold are what a step costs; whoever lowers one lowers it here.
@pytest.mark.parametrize(("kind", "reward_step"), [("masked", 5), ("left_to_right", 4)])
def test_prompts(world, tmp_path, waits, kind, reward_step):
    waits.of(prompt_policy.PolicyTrainer, "_step")
    waits.of(prompt_reward.RewardTrainer, "_step")
    waits.of(PromptPolicy, "sample")
    command = world.command(
        task_lm=getattr(world, kind), device="cuda", max_train_steps=3, log_every=100, reward_retrain_period=100,
        save_steps=0, early_stop_eval_period=3, output_folder=str(tmp_path / "run"),
    )  # fmt: skip
    assert "pretended GPU" in run_prompts(command)["hardware"]
    del waits.counts["PolicyTrainer._step"][0]  # it writes a log line
    held = {"PolicyTrainer._step": 3, "RewardTrainer._step": reward_step, "PromptPolicy.sample": 1}
    assert waits.most() == held, waits.mode.waits


def test_a_gpu_writes_the_prompts_of_a_cpu_and_is_waited_for_every_eighth_token():
    """On a CPU prompts that agree so far are looked up after each token, on a GPU after every eighth."""

    lm, tokenizer = tiny_models.make("gpt2")
    policy = PromptPolicy(lm, tokenizer, "gpt2", prompt_length=18, hidden_size=8, residual=True)

    def sampled() -> torch.Tensor:
        return policy.sample(6, torch.Generator().manual_seed(1), top_k=2).tokens

    expected = sampled()
    assert 1 < len(expected[:, :3].unique(dim=0)) < 6  # some begin alike
    with pretended_device() as mode:
        policy.to("cuda")
        assert sampled().equal(expected)
        assert sum(count for line, count in mode.waits.items() if "prompt_policy.py" in line) <= 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TinyWorld(tmp_path_factory.mktemp("tiny"))


SAMPLES = {"reinforce_coeff": 0.5, "max_entropy_coeff": 0.1}
PRODUCT = {"credit": "product", "weight_shares": "batch", "rew_head": "likelihood"}


@pytest.mark.parametrize(
    ("kind", "options", "policy_step", "reward_step"),
    [
        ("t5", {}, 1, 1),
        ("t5", SAMPLES, 4, 1),
        ("t5", PRODUCT, 2, 1),
        ("llama", SAMPLES, 6, 2),  # transformers looks whether the reward model's mask, all ones, hides anything
    ],
)
def test_summaries(tiny, tmp_path, waits, monkeypatch, kind, options, policy_step, reward_step):
    """Samples of 20 tokens are looked at after 8 and 16, then fetched."""
    stand_in_for_wordnet(monkeypatch)
    waits.of(summary_policy.PolicyTrainer, "_step")
    waits.of(summary_reward.RewardTrainer, "_step")
    waits.of(ranked_summaries, "sample_summaries")
    waits.of(policy_loss, "sample_summaries")
    results = run_summaries(
        tiny.settings(
            model_name_or_path=getattr(tiny, kind), device="cuda", output_dir=tmp_path / "run", max_target_length=20,
            val_max_target_length=2, checkpoint_steps=0, gradient_accumulation_steps=1, max_train_samples=8,
            rew_gradient_accumulation_steps=1, max_eval_samples=2, max_predict_samples=2, **options,
        )
    )  # fmt: skip
    assert "pretended GPU" in results["hardware"]
    for found in waits.counts.values():
        del found[:1]  # each model is asked once which masks it takes
    held = {"PolicyTrainer._step": policy_step, "RewardTrainer._step": reward_step}
    held |= {"sum_task.ranked_summaries.sample_summaries": 3}
    held |= {"sum_task.policy_loss.sample_summaries": 3} if options == SAMPLES else {}
    assert waits.most() == held, (waits.counts, waits.mode.waits)


@pytest.mark.parametrize(
    ("kind", "options", "step"),
    [
        ("llama", [], 1),  # transformers looks whether the mask, all ones, hides anything
        ("llama", ["--rew_head=likelihood", "--agg_func=max"], 1),
        ("t5", ["--granularity=sequence"], 2),
    ],
)
def test_rewards_of_replies(words, tiny, tmp_path, waits, kind, options, step):  # noqa: F811
    """What transformers' Trainer asks for beside the step is its own."""
    waits.of(reply_reward.TokenRewardTrainer, "training_step")
    model = [] if kind == "llama" else [f"--model_name_or_path={tiny.t5}"]
    more = ["--device=cuda", "--swap_test=false", "--spans_column=null", f"--output_dir={tmp_path / 'run'}"]
    results = run_replies(read_chat_command([*words, *model, *options, *more]))
    assert "pretended GPU" in results["hardware"]
    assert waits.most() == {"TokenRewardTrainer.training_step": step}, (waits.counts, waits.mode.waits)


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_a_gpu_draws_what_a_cpu_draws(tiny, kind):
    """Also where samples end at different tokens, which a GPU is asked about only now and then."""

    def sampled(device: str) -> list[list[int]]:
        policy = tiny.policy(model_name_or_path=getattr(tiny, kind))
        torch.manual_seed(0)
        if kind == "llama":
            with torch.no_grad():
                policy.lm.get_output_embeddings().weight[policy.end_id] *= 3  # it would hardly ever end
        policy.to(torch.device(device))
        batch = policy.collator()(tokenize(rows, policy.format, 20), [0, 1, 2]).to(policy.device)
        noise = torch.rand(9, 20, generator=torch.Generator().manual_seed(1))
        sources = policy.encode(batch.sources)
        return sample_summaries(policy, sources, 3, noise, None, 1.0).lists()

    rows = load_splits(train_file=tiny.train, validation_file=tiny.train).train
    expected = sampled("cpu")
    assert len({len(row) for row in expected}) > 3
    with pretended_device():
        assert sampled("cuda") == expected
