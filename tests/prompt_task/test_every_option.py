"""Every option of configs/fsc_config.yaml does what its comment says, in a whole run: WALK has an entry for each."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from common.errors import UserError
from common.training import progress, tracking
from common.training.plateau import Plateau, PlateauSettings
from common.training.tracking import read_metrics
from prompt_task import policy_trainer, reward_trainer, run_fsc
from prompt_task.candidates import CandidateTable
from prompt_task.policy_trainer import PolicyTrainer
from prompt_task.prompt_scorer import PromptScorer
from prompt_task.task_lm import TaskLM
from tests.tiny_runs import TINY, World, noted, published_options

RUN = {"max_train_steps": 6, "early_stop_eval_period": 2, "log_every": 2, "save_steps": 2}


@dataclass
class Seen:
    """What could be seen of one run."""

    folder: Path
    results: dict[str, Any] = field(default_factory=dict)
    trainer: Any = None
    task_lm: Any = None
    scored: list[tuple[int, int, bool]] = field(default_factory=list)  # prompts, examples, standardized
    added: list[int] = field(default_factory=list)  # candidates that joined at a time
    aggregated: list[tuple[tuple[int, ...], str, float]] = field(default_factory=list)  # shape, method, temperature
    weighed: list[tuple[tuple[int, ...], str]] = field(default_factory=list)  # shape, guidance
    clipped: list[float] = field(default_factory=list)
    reward_plateau: Any = None
    quiet: bool | None = None
    threads: int = 0

    @property
    def prompts(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "prompts.csv", keep_default_na=False, na_values={"test_accuracy": [""]})

    def events(self, phase: str) -> list[dict[str, Any]]:
        return [event for event in read_metrics(self.folder / "metrics.jsonl") if event["phase"] == phase]

    @property
    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "checkpoints").glob("*"))

    @property
    def plateaus(self) -> list[PlateauSettings]:
        return [self.trainer.plateau.settings, self.reward_plateau.settings]

    def clip(self, norm: float) -> None:
        """Note a norm that gradients were clipped to; one that is infinite measures them alone."""
        self.clipped += [norm] * (norm < torch.inf)

    @property
    def texts(self) -> list[str]:
        return [example.text for example in self.trainer.train_scorer.examples]


Observe = Callable[..., Seen]
Walk = Callable[..., None]


@pytest.fixture
def observe(world, tmp_path, monkeypatch) -> Observe:
    def run(**options: Any) -> Seen:
        seen = Seen(Path(str(options.get("output_folder", tmp_path / f"run-{len(list(tmp_path.iterdir()))}"))))

        class Trainer(PolicyTrainer):
            def train(self, checkpointer=None):
                seen.trainer, seen.task_lm = self, self.train_scorer.task_lm
                super().train(checkpointer)
                seen.quiet, seen.threads = progress._quiet, torch.get_num_threads()

        class Scorer(PromptScorer):
            def score(self, prompts, indices=None, on_pairs=None, standardize=False):
                seen.scored.append((len(prompts), len(self.examples) if indices is None else len(indices), standardize))
                return super().score(prompts, indices, on_pairs, standardize)

        class Table(CandidateTable):
            def add(self, tokens, of_the_end=None):
                seen.added.append(len(tokens))
                super().add(tokens, of_the_end)

        class RewardPlateau(Plateau):
            def __init__(self, *args):
                super().__init__(*args)
                seen.reward_plateau = self

        with monkeypatch.context() as patch:
            patch.setattr(run_fsc, "PolicyTrainer", Trainer)
            patch.setattr(run_fsc, "PromptScorer", Scorer)
            patch.setattr(run_fsc, "CandidateTable", Table)
            patch.setattr(reward_trainer, "Plateau", RewardPlateau)
            patch.setattr(run_fsc, "write_run_report", lambda folder, *_: folder.report.write_text(""))
            aggregate, weigh = reward_trainer.aggregate_token_rewards, policy_trainer.token_weights
            clip = torch.nn.utils.clip_grad_norm_
            aggregate = noted(aggregate, lambda r, _, *how: seen.aggregated.append((tuple(r.shape), *how)))
            patch.setattr(reward_trainer, "aggregate_token_rewards", aggregate)
            weigh = noted(weigh, lambda r, _, how: seen.weighed.append((tuple(r.shape), how)))
            patch.setattr(policy_trainer, "token_weights", weigh)
            patch.setattr(torch.nn.utils, "clip_grad_norm_", noted(clip, lambda p, norm, **_: seen.clip(norm)))
            seen.results = run_fsc.run(world.command(**RUN | {"output_folder": seen.folder} | options))
        return seen

    return run


@pytest.fixture(scope="module")
def shared() -> dict[str, Seen]:
    return {}


@pytest.fixture
def base(observe, shared, tmp_path_factory) -> Seen:
    """One run without any change, shared by all tests of this file."""
    if "base" not in shared:
        shared["base"] = observe(output_folder=tmp_path_factory.mktemp("base") / "run")
    return shared["base"]


def filled(options: dict[str, Any], world: World) -> dict[str, Any]:
    """`@name` stands for a folder of the tiny world."""
    return {k: getattr(world, v[1:]) if isinstance(v, str) and v.startswith("@") else v for k, v in options.items()}


def changed(options: dict[str, Any], check: Callable[[Seen, Seen], Any]) -> Walk:
    """The run with `options` differs from the one without as `check` says."""

    def walk(observe: Observe, base: Seen, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert check(base, observe(**filled(options, world)))

    return walk


def becomes(options: dict[str, Any], look: Callable[[Seen], Any], before: Any, after: Any) -> Walk:
    """What `look` sees is `before` in the run without `options` and `after` in the one with them."""

    def walk(observe: Observe, base: Seen, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert look(base) == before
        assert look(observe(**filled(options, world))) == after

    return walk


def refused(options: dict[str, Any], words: str) -> Walk:
    """The run with `options` ends with an error that names them."""

    def walk(observe: Observe, base: Seen, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(UserError, match=words):
            observe(**filled(options, world))

    return walk


def lengths(seen: Seen) -> set[int]:
    return {len(str(ids).split()) for ids in seen.prompts["token_ids"]}


def frozen(base: Seen, other: Seen) -> bool:
    """The backbone is still the LM that the policy uses too, and the head has been trained."""

    def moved(seen: Seen) -> bool:
        start = seen.trainer.policy.lm.base_model.state_dict()
        now = seen.trainer.reward_model.backbone.state_dict()
        return any(not torch.equal(now[name], value) for name, value in start.items())

    heads = [seen.trainer.reward_model.head[2].weight for seen in (base, other)]
    return moved(base) and not moved(other) and not torch.equal(*heads)


def grown(base: Seen, other: Seen) -> torch.Tensor:
    """By how much the dev score of the same prompts has grown."""
    prompts = list(base.prompts["prompt"])
    return other.trainer.dev_scorer.score(prompts).score - base.trainer.dev_scorer.score(prompts).score


def other_prompts(base: Seen, other: Seen) -> bool:
    return set(base.prompts["prompt"]) != set(other.prompts["prompt"])


def first(run: Seen, name: str, phase: str = "policy") -> float:
    """A figure of the first event of a phase."""
    return float(run.events(phase)[0][f"{phase}/{name}"])


def guidance(run: Seen) -> set[str]:
    return {name for _, name in run.weighed}


def set_shapes(run: Seen) -> set[tuple[int, ...]]:
    """Shapes (B, K, T) of the ranking sets."""
    return {shape for shape, *_ in run.aggregated}


def walk_output_folder(observe, base, world, tmp_path, monkeypatch):
    assert (base.folder / "results.json").is_file()
    monkeypatch.chdir(tmp_path)
    named_by_default = Path("outputs", "fsc", "sst-2-0", "token-sum-0")
    run_fsc.run(world.command(**RUN))
    assert (tmp_path / named_by_default / "results.json").is_file()


def walk_overwrite(observe, base, world, tmp_path, monkeypatch):
    observe(output_folder=tmp_path / "run", random_seed=0)
    with pytest.raises(UserError, match="already holds a complete run"):
        observe(output_folder=tmp_path / "run", random_seed=1)
    assert observe(output_folder=tmp_path / "run", random_seed=1, overwrite=True).results["seed"] == 1
    assert json.loads((tmp_path / "run" / "results.json").read_text())["seed"] == 1


def walk_resume(observe, base, world, tmp_path, monkeypatch):
    observe(output_folder=tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    again = observe(output_folder=tmp_path / "run", resume="auto")
    assert again.results["policy_steps"] == 6
    assert len(again.weighed) == 0  # its last checkpoint was that of the last step
    finished = observe(output_folder=tmp_path / "run", resume="auto")
    assert finished.trainer is None
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(UserError, match=r"learning_rate was 0.01, is 0.02 \(allowed with resume=changed\)"):
        observe(output_folder=tmp_path / "run", resume="auto", learning_rate=0.02)
    assert observe(output_folder=tmp_path / "run", resume="changed", learning_rate=0.02).results["policy_steps"] == 6
    assert finished.results["test_accuracy"] == base.results["test_accuracy"]


def walk_checkpoint_path(observe, base, world, tmp_path, monkeypatch):
    other = observe(checkpoint_path=base.folder / "checkpoints" / "step-000008")
    assert len(base.weighed) == 6
    assert len(other.weighed) == 2
    assert other.prompts.equals(base.prompts)


def walk_extend(observe, base, world, tmp_path, monkeypatch):
    shutil.copytree(base.folder, tmp_path / "run")
    longer = observe(output_folder=tmp_path / "run", extend=True, max_train_steps=8)
    assert longer.results["policy_steps"] == 8
    assert len(longer.weighed) == 2


def walk_num_threads(observe, base, world, tmp_path, monkeypatch):
    before = torch.get_num_threads()
    try:
        assert observe(num_threads=before + 2).threads == before + 2
    finally:
        torch.set_num_threads(before)


def walk_matmul_precision(observe, base, world, tmp_path, monkeypatch):
    try:
        observe(matmul_precision="medium")
        assert torch.get_float32_matmul_precision() == "medium"
        observe()
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")


def walk_mixed_precision(observe, base, world, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as accelerate launch says it
    half = observe()
    assert "mixed_precision: bf16" in (half.folder / "config.yaml").read_text()
    learnt, wholly = (load_file(seen.folder / "policy" / "adaptor.safetensors") for seen in (half, base))
    assert all(value.dtype == torch.float32 for value in learnt.values())
    assert not all(torch.equal(learnt[name], wholly[name]) for name in learnt)
    assert all(torch.allclose(learnt[name], wholly[name], atol=0.1) for name in learnt)
    with pytest.raises(UserError, match="fp16 here and bf16 for accelerate contradict"):
        observe(mixed_precision="fp16")
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    with pytest.raises(UserError, match="mixed_precision: fp16 needs a CUDA device"):
        observe(mixed_precision="fp16")


def walk_tsv_quoting(observe, base, world, tmp_path, monkeypatch):
    shutil.copytree(Path(world.data), tmp_path / "data")
    for file in (tmp_path / "data").rglob("train.tsv"):
        head, first, *rest = file.read_text().splitlines()
        text, label = first.split("\t")
        file.write_text("\n".join([head, f'"""{text}"" said"\t{label}', *rest]) + "\n")
    seen = []
    monkeypatch.setattr(TaskLM, "read_ahead", lambda self, texts: seen.extend(texts))
    for quoting, ends in (("auto", '" said'), ("unquoted", '"" said"')):
        seen.clear()
        observe(base_path=tmp_path / "data", tsv_quoting=quoting, output_folder=tmp_path / quoting)
        assert [text.endswith(ends) for text in seen].count(True) == 1


def walk_sentence_cache(observe, base, world, tmp_path, monkeypatch):
    kept = [observe(task_lm=world.left_to_right, sentence_cache_mib=mib) for mib in (0, 100)]
    assert len(kept[0].task_lm._states) == 0
    assert len(kept[1].task_lm._states) > 10
    assert kept[0].results["test_accuracy"] == kept[1].results["test_accuracy"]


def walk_trackers(option):
    def walk(observe, base, world, tmp_path, monkeypatch):
        monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match="report_to: 'wandb' is not installed"):
            observe(output_folder=tmp_path / "run", **option)
        assert not (tmp_path / "run").exists()

    return walk


def walk_quiet(observe, base, world, tmp_path, monkeypatch):
    try:
        assert observe(quiet=False).quiet is False
    finally:
        progress.set_quiet(False)
    assert base.quiet is True


def walk_verbose(observe, base, world, tmp_path, monkeypatch):
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        observe(verbose=False)
        assert not [line for line in lines if "verbalizers of its own" not in line]  # of models that are folders
        observe(verbose=True, quiet=False)
    finally:
        progress.set_verbose(False)
        progress.set_quiet(False)
        logging.getLogger().removeHandler(handler)
    text = "\n".join(lines)
    for part in (
        "device cpu",
        "6 train, 6 dev",
        "policy: ",
        "reward model: ",
        "dev loss",
        "dev score",
        "checkpoint after",
    ):
        assert part in text


WALK: dict[str, Walk] = {
    # data
    "dataset": becomes({"dataset": "mr"}, lambda run: run.results["dataset"], "sst-2", "mr"),
    "base_path": changed({"base_path": "@other_data"}, lambda a, b: b.texts == [f"again {text}" for text in a.texts]),
    "tsv_quoting": walk_tsv_quoting,
    "num_shots": becomes({"num_shots": 2}, lambda run: len(run.texts), 6, 4),
    "dataset_seed": changed({"dataset_seed": 1}, lambda a, b: b.texts == [f"again {text}" for text in a.texts]),
    # task LM
    "task_lm": becomes(
        {"task_lm": "@left_to_right"}, lambda run: type(run.task_lm).__name__, "MaskedTaskLM", "LeftToRightTaskLM"
    ),
    "is_mask_lm": refused({"is_mask_lm": True, "task_lm": "@left_to_right"}, "AutoModelForMaskedLM"),
    "task_lm_dtype": becomes(
        {"task_lm_dtype": "bfloat16"}, lambda run: run.task_lm.model.dtype, torch.float32, torch.bfloat16
    ),
    "scoring_tokens_per_batch": changed(
        {"scoring_tokens_per_batch": 40}, lambda a, b: b.task_lm.tokens_per_batch == 40 < a.task_lm.tokens_per_batch
    ),
    "sentence_cache_mib": walk_sentence_cache,
    # policy
    "policy_lm": changed({"policy_lm": "@other_policy"}, other_prompts),
    "hidden_size": becomes(
        {"hidden_size": 24},
        lambda run: (run.trainer.policy.adaptor[0].out_features, run.trainer.reward_model.head[0].out_features),
        (16, 16),
        (24, 24),
    ),
    "adaptor_residual": changed(
        {"adaptor_residual": True}, lambda a, b: first(b, "entropy") < first(a, "entropy") - 0.1
    ),
    "source_str": becomes({"source_str": "a great film"}, lambda run: len(run.trainer.policy.source_ids), 1, 3),
    "prompt_length": becomes({"prompt_length": 4}, lengths, {3}, {4}),
    "top_k": changed({"top_k": 1}, lambda a, b: first(b, "distinct_prompts") == 1 / 8 < first(a, "distinct_prompts")),
    "top_p": changed(
        {"top_p": 1e-6}, lambda a, b: first(b, "distinct_prompts") == 1 / 8 < first(a, "distinct_prompts")
    ),
    # preference
    "preference": changed(
        {"preference": "tests.tiny_runs:least_of_all"},
        lambda a, b: 0 < b.results["best_dev_score"] < 1 and grown(a, b).any(),
    ),
    "correct_coeff": changed({"correct_coeff": 1e6}, lambda a, b: grown(a, b).max() > 1e3 and grown(a, b).min() >= 0),
    "incorrect_coeff": changed(
        {"incorrect_coeff": 1e6}, lambda a, b: grown(a, b).min() < -1e3 and grown(a, b).max() <= 0
    ),
    "compute_zscore": becomes(
        {"compute_zscore": True}, lambda run: {s for _, examples, s in run.scored if examples == 5}, {False}, {True}
    ),
    # token-level reward
    "agg_func": becomes({"agg_func": "max"}, lambda run: {method for _, method, _ in run.aggregated}, {"sum"}, {"max"}),
    "soft_maxmin_temp": becomes(
        {"soft_maxmin_temp": 0.5}, lambda run: {temperature for *_, temperature in run.aggregated}, {2.0}, {0.5}
    ),
    "use_softplus": becomes(
        {"use_softplus": False}, lambda run: run.trainer.reward_model.config.bound, "softplus", "sigmoid"
    ),
    "rew_head": becomes(
        {"rew_head": "likelihood"}, lambda run: type(run.trainer.reward_model.head).__name__,
        "Sequential", "LikelihoodHead",
    ),
    "rew_freeze_backbone": changed({"rew_freeze_backbone": True}, frozen),
    "head_init_gain": changed(
        {"head_init_gain": 1e-4, "rew_learning_rate": 1e-6},
        lambda a, b: first(b, "token_std", "reward") < 1e-5 < first(a, "token_std", "reward"),
    ),
    "reward_learning_samples": becomes({"reward_learning_samples": 4}, set_shapes, {(6, 3, 3)}, {(6, 4, 3)}),
    "reward_learning_batch_size": becomes({"reward_learning_batch_size": 9}, set_shapes, {(6, 3, 3)}, {(9, 3, 3)}),
    "prompt_train_batch_size": becomes(
        {"prompt_train_batch_size": 5}, lambda run: {prompts for prompts, examples, _ in run.scored if examples == 5},
        {8}, {5},
    ),
    "reward_example_share": becomes(
        {"reward_example_share": 0.5}, lambda run: {examples for _, examples, _ in run.scored}, {5, 6}, {3, 6}
    ),
    "reward_pool_size": changed(
        {"reward_pool_size": 9}, lambda a, b: b.results["prompts_scored"] < a.results["prompts_scored"]
    ),
    "screening": changed({"screening": 5}, other_prompts),
    "rew_gradient_accumulation_steps": becomes(
        {"rew_gradient_accumulation_steps": 3}, lambda run: sum(examples == 5 for _, examples, _ in run.scored), 4, 12
    ),
    "rew_num_train_epochs": becomes({"rew_num_train_epochs": 4}, lambda run: len(run.events("reward")), 2, 4),
    "rew_max_train_steps": becomes({"rew_max_train_steps": 8}, lambda run: run.results["reward_steps"], 4, 8),
    "rew_validation_batches": becomes(
        {"rew_validation_batches": 5}, lambda run: len(run.aggregated), 4 + 2 * 2, 4 + 2 * 5
    ),
    "rew_learning_rate": becomes(
        {"rew_learning_rate": 2e-3}, lambda run: first(run, "learning_rate", "reward"), 1e-2, 2e-3
    ),
    "reward_retrain_period": becomes(
        {"reward_retrain_period": 1}, lambda run: {event["round"] for event in run.events("reward")}, {0}, {0, 1, 2, 3}
    ),
    # policy learning
    "guidance": becomes({"guidance": "sequence"}, guidance, {"reward"}, {"sequence"}),
    "use_q_for_weight": becomes({"use_q_for_weight": True}, guidance, {"reward"}, {"reward-to-go"}),
    "reinforce_baseline": changed({"reinforce_baseline": True}, other_prompts),
    "num_reinforce_samples": becomes(
        {"num_reinforce_samples": 11}, lambda run: {shape for shape, _ in run.weighed}, {(8, 3)}, {(11, 3)}
    ),
    "max_entropy_coeff": becomes(
        {"max_entropy_coeff": 0.5},
        lambda run: (first(run, "reinforce_loss") - first(run, "loss")) / first(run, "entropy"),
        pytest.approx(0.125, abs=1e-4),
        pytest.approx(0.5, abs=1e-4),
    ),
    "max_train_steps": becomes({"max_train_steps": 8}, lambda run: run.results["policy_steps"], 6, 8),
    "learning_rate": becomes({"learning_rate": 3e-3}, lambda run: first(run, "learning_rate"), 1e-2, 3e-3),
    "early_stop_eval_period": becomes(
        {"early_stop_eval_period": 3}, lambda run: [event["step"] for event in run.events("eval")], [2, 4, 6], [3, 6]
    ),
    "num_validation_prompts": becomes(
        {"num_validation_prompts": 3}, lambda run: sum(prompts == 24 for prompts, *_ in run.scored), 0, 3
    ),
    # both models
    "gradient_clip": becomes({"gradient_clip": False}, lambda run: set(run.clipped), {5.0}, set()),
    "gradient_clip_norm": becomes({"gradient_clip_norm": 0.5}, lambda run: set(run.clipped), {5.0}, {0.5}),
    "lr_decay": becomes({"lr_decay": 0.5}, lambda run: [p.factor for p in run.plateaus], [0.8, 0.8], [0.5, 0.5]),
    "weight_decay_count": becomes(
        {"weight_decay_count": 5}, lambda run: [p.patience for p in run.plateaus], [2, 2], [5, 5]
    ),
    "early_stop_count": changed(
        {"early_stop_count": 3, "learning_rate": 1e-12, "max_train_steps": 30},
        lambda a, b: b.results["policy_steps"] == 8 and [p.stop_after for p in b.plateaus] == [3, 3],
    ),
    # candidates and result
    "eval_steps": becomes({"eval_steps": 1}, lambda run: run.added, [1, 1, 4], [1, 1, 1, 1, 4]),
    "candidate_steps": becomes({"candidate_steps": 2}, lambda run: run.added, [1, 1, 4], [1, 4]),
    "prompt_infer_batch_size": becomes({"prompt_infer_batch_size": 3}, lambda run: run.added, [1, 1, 4], [3, 3, 4]),
    "num_final_prompts": becomes({"num_final_prompts": 7}, lambda run: run.added, [1, 1, 4], [1, 1, 7]),
    "pool_candidates": changed(
        {"reward_pool_size": 9, "pool_candidates": 3}, lambda a, b: 3 in b.added and 3 not in a.added
    ),
    "candidate_split": changed(
        {"candidate_split": "both"},
        lambda a, b: a.prompts["dev_score"].is_monotonic_decreasing
        and (b.prompts["train_score"] + b.prompts["dev_score"]).is_monotonic_decreasing,
    ),
    "num_candidates": changed(
        {"num_candidates": 3}, lambda a, b: b.prompts["test_accuracy"].count() == 3 < a.prompts["test_accuracy"].count()
    ),
    "num_reported": becomes({"num_reported": 3}, lambda run: len(run.results["reported_prompts"]), 2, 3),
    # run
    "random_seed": changed({"random_seed": 1}, other_prompts),
    "device": refused({"device": "meta"}, "device: 'meta' is not available"),
    "num_threads": walk_num_threads,
    "matmul_precision": walk_matmul_precision,
    "mixed_precision": walk_mixed_precision,
    "output_folder": walk_output_folder,
    "overwrite": walk_overwrite,
    "resume": walk_resume,
    "extend": walk_extend,
    "checkpoint_path": walk_checkpoint_path,
    "checkpoint_minutes": becomes(
        {"checkpoint_minutes": 1e-9, "save_steps": 0}, lambda run: run.checkpoints,
        ["step-000008", "step-000010"], ["step-000009", "step-000010"],
    ),
    "checkpoint_steps": becomes(
        {"checkpoint_steps": 9, "save_steps": 0}, lambda run: run.checkpoints,
        ["step-000008", "step-000010"], ["step-000009", "step-000010"],
    ),
    "save_steps": becomes(
        {"save_steps": 3}, lambda run: run.checkpoints, ["step-000008", "step-000010"], ["step-000007", "step-000010"]
    ),
    "keep_checkpoints": becomes(
        {"keep_checkpoints": 1}, lambda run: run.checkpoints, ["step-000008", "step-000010"], ["step-000010"]
    ),
    "log_every": becomes(
        {"log_every": 4}, lambda run: [event["step"] for event in run.events("policy")], [1, 2, 4, 6], [1, 4]
    ),
    "report_to": walk_trackers({"report_to": ["wandb"]}),
    "report_to_wandb": walk_trackers({"report_to_wandb": True}),
    "quiet": walk_quiet,
    "verbose": walk_verbose,
}  # fmt: skip


@pytest.mark.parametrize("key", [*published_options(), "dataset"])
def test_the_option_is_effective(key, observe, base, world, tmp_path, monkeypatch):
    walk = WALK[key]  # an option without an entry fails here
    walk(observe, base, world, tmp_path, monkeypatch)


def test_the_walk_has_no_entry_for_what_is_no_option():
    assert set(WALK) == {*published_options(), "dataset"}


def test_tiny_settings_are_options():
    assert set(TINY) <= set(published_options())
