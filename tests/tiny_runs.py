"""The trainers of the prompt task around tiny models, with a task LM that notes what it is asked."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import OmegaConf

from common.token_reward_model import TokenRewardConfig, TokenRewardModel
from common.training.engine import Engine, start_engine
from common.training.runtime import start_runtime
from common.training.tracking import MetricsLog
from prompt_task.candidates import CandidateTable
from prompt_task.command_line import CONFIGS, Command, command_from
from prompt_task.few_shot_data import Example
from prompt_task.policy_trainer import PolicyTrainer
from prompt_task.prompt_policy import PromptPolicy
from prompt_task.prompt_scorer import PromptScorer
from prompt_task.reward_trainer import RewardTrainer
from prompt_task.settings import FewShotSettings
from prompt_task.task_lm import TaskLM
from tests import tiny_models

TINY: dict[str, Any] = {
    "hidden_size": 16, "prompt_length": 3, "top_k": None, "head_init_gain": 1.0,
    "reward_learning_samples": 3, "reward_learning_batch_size": 6, "prompt_train_batch_size": 8,
    "rew_num_train_epochs": 2, "rew_max_train_steps": 4, "rew_validation_batches": 2, "rew_learning_rate": 1e-2,
    "reward_retrain_period": 4, "num_reinforce_samples": 8, "max_train_steps": 10, "learning_rate": 1e-2,
    "early_stop_eval_period": 3, "num_validation_prompts": 1, "eval_steps": 2, "candidate_steps": 4,
    "num_final_prompts": 4, "num_candidates": 6, "num_reported": 2, "log_every": 5, "save_steps": 4,
    "checkpoint_minutes": 0,
    "device": "cpu", "quiet": True,
}  # fmt: skip
TRAIN = [Example(f"train {i}", i % 2) for i in range(10)]
DEV = [Example(f"dev {i}", i % 2) for i in range(6)]


def published_options() -> dict[str, Any]:
    """The options of configs/fsc_config.yaml as plain data."""
    values = OmegaConf.to_container(OmegaConf.load(CONFIGS / "fsc_config.yaml"))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key not in ("defaults", "hydra")}


def settings_of(**options: Any) -> FewShotSettings:
    """Tiny settings, some of them replaced."""
    return FewShotSettings.from_mapping(published_options() | TINY | options)


def least_of_all(prompts: list[str], probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A preference of the user's over prompts: the least probability of a label, within (0, 1)."""
    return probabilities[:, range(len(labels)), labels].amin(-1)


def by_hash(sentence: str, prompt: str) -> float:
    """Some probability of class 0, the same at every call and in every process."""
    return int(hashlib.md5(f"{sentence}|{prompt}".encode()).hexdigest(), 16) % 100_000 / 100_000


class SpyTaskLM:
    """Gives each (sentence, prompt) a fixed probability and notes what it was asked."""

    num_classes = 2

    def __init__(self, probability: Callable[[str, str], float] = by_hash):
        self.probability = probability
        self.asked: list[tuple[str, str]] = []
        self.calls = 0

    def class_probabilities(self, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
        self.calls += 1
        self.asked += pairs
        first = torch.tensor([self.probability(*pair) for pair in pairs])
        return torch.stack([first, 1 - first], -1)

    def prompts(self) -> list[str]:
        """The prompts it was asked about so far, each once."""
        return list(dict.fromkeys(prompt for _, prompt in self.asked))


def untimed(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events without what the clock decides."""
    return [
        {k: v for k, v in event.items() if k not in ("seconds", "perf/seconds_left") and not k.endswith("_per_second")}
        for event in events
    ]


class EventLog:
    """Keeps the events that a run's log would write."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def log(self, phase: str, round: int, step: int, **values: float) -> None:
        self.events.append({"phase": phase, "round": round, "step": step, **values})

    def texts(self, step: int, rows: Sequence[dict[str, Any]]) -> None:
        self.shown = (step, rows)

    def of(self, phase: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["phase"] == phase]

    def values(self, name: str) -> list[float]:
        return [event[name] for event in self.events if name in event]


@dataclass
class Run:
    """Everything that a run holds. Tests look into and replace parts of it, so that it is not typed."""

    settings: Any
    runtime: Any
    policy: Any
    reward_model: Any
    task_lm: Any
    train_scorer: Any
    dev_scorer: Any
    candidates: Any
    reward_trainer: Any
    trainer: Any
    log: EventLog


def make_run(
    task_lm: SpyTaskLM | None = None, dropout: float = 0.1, engine: Engine | None = None, **options: Any
) -> Run:
    """A run over a tiny GPT-2 with the settings `options`."""
    settings = settings_of(**options)
    runtime = start_runtime(settings.run.random_seed, "cpu")
    task_lm = task_lm or SpyTaskLM()
    lm, tokenizer = tiny_models.make("gpt2", embd_pdrop=dropout, resid_pdrop=dropout, attn_pdrop=dropout)
    policy = PromptPolicy(
        lm, tokenizer, "gpt2", settings.models.source_str, settings.models.prompt_length, settings.models.hidden_size,
        settings.models.adaptor_residual,
    )  # fmt: skip
    reward_model = TokenRewardModel(
        TokenRewardConfig(
            backbone=lm.config.to_dict(), head_hidden_size=16, head_init_gain=settings.models.head_init_gain,
            bound="softplus" if settings.models.use_softplus else "sigmoid", head=settings.models.rew_head,
        )
    ).eval()  # fmt: skip
    train_scorer, dev_scorer = (
        PromptScorer(cast(TaskLM, task_lm), part, **vars(settings.preference)) for part in (TRAIN, DEV)
    )
    events = EventLog()
    shared = runtime, engine or start_engine("cpu"), cast(MetricsLog, events)
    reward_trainer = RewardTrainer(reward_model, policy, train_scorer, dev_scorer, settings.reward, *shared)
    candidates = CandidateTable(policy, train_scorer, dev_scorer)
    trainer = PolicyTrainer(policy, reward_trainer, train_scorer, dev_scorer, candidates, settings.policy, *shared)
    return Run(
        settings, runtime, policy, reward_model, task_lm, train_scorer, dev_scorer, candidates, reward_trainer, trainer,
        events,
    )  # fmt: skip


def noted(function: Callable[..., Any], note: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, with `note` called before it with the same arguments."""

    def call(*args: Any, **kwargs: Any) -> Any:
        note(*args, **kwargs)
        return function(*args, **kwargs)

    return call


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a model's weights."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@dataclass(frozen=True)
class World:
    """Folders of tiny models and data from which whole runs start."""

    policy: str
    other_policy: str
    masked: str
    left_to_right: str
    data: str
    other_data: str

    def options(self, **options: Any) -> dict[str, Any]:
        """The options of a tiny run that are not the published ones, with some of them replaced."""
        own = {"base_path": self.data, "num_shots": 3, "policy_lm": self.policy, "task_lm": self.masked}
        return TINY | own | options

    def words(self, **options: Any) -> list[str]:
        """The command line of such a run."""
        return [f"{key}={as_typed(value)}" for key, value in self.options(**options).items()]

    def command(self, dataset: str = "sst-2", **options: Any) -> Command:
        """What its command line is read to, without the time that Hydra takes."""
        spec = OmegaConf.to_container(OmegaConf.load(CONFIGS / "dataset" / f"{dataset}.yaml"))
        paths = {key: str(value) for key, value in options.items() if isinstance(value, Path)}
        return command_from(published_options() | self.options(**options) | paths | {"dataset": spec}, {})


def as_typed(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def make_world(folder: Path) -> World:
    """Write the models and the data."""
    data = tiny_models.write_splits(folder / "data", "sst-2", tiny_models.TRAIN_TEXTS, 3)
    shifted = [(f"again {text}", label) for text, label in tiny_models.TRAIN_TEXTS]
    tiny_models.write_splits(folder / "data", "sst-2", shifted, 3, split=13)
    tiny_models.write_splits(folder / "data", "mr", shifted, 3)
    tiny_models.write_splits(folder / "data", "sst-2", tiny_models.TRAIN_TEXTS[:4], 2)
    return World(
        policy=tiny_models.save("gpt2", folder / "policy", seed=1),
        other_policy=tiny_models.save("gpt2", folder / "other_policy", seed=2),
        masked=tiny_models.save("roberta", folder / "masked"),
        left_to_right=tiny_models.save("gpt2", folder / "left_to_right", seed=3),
        data=data,
        other_data=tiny_models.write_splits(folder / "other_data", "sst-2", shifted, 3),
    )
