from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from accelerate.utils import DistributedType

from common.errors import UserError
from common.training.launcher import check_wrapped, honour_launcher
from common.training.settings import TaskSettings, setting


@dataclass(frozen=True)
class Group:
    device: str = setting()
    mixed_precision: str = setting()
    gradient_accumulation_steps: int = setting()


@dataclass(frozen=True)
class Settings(TaskSettings):
    policy: Group


@dataclass(frozen=True)
class Bare(TaskSettings):
    pass


def settings(precision="no", steps=4, device="auto"):
    return Settings(Group(device, precision, steps))


DEFAULTS = {"device": "auto", "mixed_precision": "no", "gradient_accumulation_steps": 4}
PRECISION, STEPS = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"


@pytest.mark.parametrize(
    ("environment", "own", "expected"),
    [
        ({}, settings("bf16", 2), settings("bf16", 2)),
        ({PRECISION: "no", STEPS: "1", "ACCELERATE_DYNAMO_BACKEND": "NO"}, settings("bf16", 2), settings("bf16", 2)),
        ({PRECISION: "bf16"}, settings(), settings("bf16", 4)),
        ({PRECISION: "bf16"}, settings("bf16"), settings("bf16")),
        ({STEPS: "8"}, settings(), settings("no", 8)),
        ({"ACCELERATE_USE_CPU": "True"}, settings(), settings(device="cpu")),
        ({"ACCELERATE_USE_CPU": "False"}, settings(device="cuda"), settings(device="cuda")),
        ({"ACCELERATE_USE_FSDP": "false", PRECISION: "no"}, Bare(), Bare()),
    ],
)
def test_what_accelerate_asks_for_takes_the_place_of_an_option_at_its_default(monkeypatch, environment, own, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert honour_launcher(own, DEFAULTS) == expected


@pytest.mark.parametrize(
    ("variable", "value", "own", "message"),
    [
        (PRECISION, "bf16", settings("fp16"), "mixed_precision: fp16 here and bf16 for accelerate contradict"),
        (PRECISION, "fp8", settings(), "mixed_precision=fp8 is not for this task"),
        (PRECISION, "bf16", Bare(), "mixed_precision=bf16 is not for this task"),
        (STEPS, "8", settings("no", 2), "gradient_accumulation_steps: 2 here and 8 for accelerate contradict"),
        ("ACCELERATE_USE_CPU", "True", settings(device="cuda"), "device: cuda here and cpu for accelerate contradict"),
        (STEPS, "two", settings(), "gradient_accumulation_steps=two is not a whole number"),
        ("ACCELERATE_USE_FSDP", "true", settings(), "FSDP is not for this task"),
        ("ACCELERATE_USE_DEEPSPEED", "true", Bare(), "DeepSpeed is not for this task"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", settings(), "dynamo_backend is not for this task"),
    ],
)
def test_what_it_cannot_honour_or_what_contradicts_is_refused_in_a_line(monkeypatch, variable, value, own, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=message) as caught:
        honour_launcher(own, DEFAULTS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_what_wraps_a_model_is_left_to_a_plain_forward_pass(monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    assert honour_launcher(settings(), DEFAULTS, plain_forward=True) == settings()
    with pytest.raises(UserError, match="turn it off"):
        honour_launcher(settings(), DEFAULTS)


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_wrapper_that_accelerate_passes_over_is_refused(monkeypatch, variable):
    # As accelerate does with FSDP for processes on CPUs: it is asked for, and the models stay whole.
    here = SimpleNamespace(distributed_type=DistributedType.MULTI_CPU)
    check_wrapped(here)
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UserError, match=r"was asked for, and accelerate does without it here \(MULTI_CPU\)"):
        check_wrapped(here)
    kind = DistributedType.FSDP if "FSDP" in variable else DistributedType.DEEPSPEED
    check_wrapped(SimpleNamespace(distributed_type=kind))
