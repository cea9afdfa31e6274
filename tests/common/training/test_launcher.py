from dataclasses import dataclass

import pytest

from common.errors import UserError
from common.training.launcher import honour_launcher


@dataclass(frozen=True)
class Settings:
    mixed_precision: str = "no"
    gradient_accumulation_steps: int = 4


@dataclass(frozen=True)
class Bare:
    seed: int = 0


DEFAULTS = {"mixed_precision": "no", "gradient_accumulation_steps": 4}
PRECISION, STEPS = "ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"


@pytest.mark.parametrize(
    ("environment", "own", "expected"),
    [
        ({}, Settings("bf16", 2), Settings("bf16", 2)),
        ({PRECISION: "no", STEPS: "1", "ACCELERATE_DYNAMO_BACKEND": "NO"}, Settings("bf16", 2), Settings("bf16", 2)),
        ({PRECISION: "bf16"}, Settings(), Settings("bf16", 4)),
        ({PRECISION: "bf16"}, Settings("bf16"), Settings("bf16")),
        ({STEPS: "8"}, Settings(), Settings("no", 8)),
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
        (PRECISION, "bf16", Settings("fp16"), "mixed_precision: fp16 here and bf16 for accelerate contradict"),
        (PRECISION, "fp8", Settings(), "mixed_precision=fp8 is not for this task"),
        (PRECISION, "bf16", Bare(), "mixed_precision=bf16 is not for this task"),
        (STEPS, "8", Settings("no", 2), "gradient_accumulation_steps: 2 here and 8 for accelerate contradict"),
        (STEPS, "two", Settings(), "gradient_accumulation_steps=two is not a whole number"),
        ("ACCELERATE_USE_FSDP", "true", Settings(), "FSDP is not for this task"),
        ("ACCELERATE_USE_DEEPSPEED", "true", Bare(), "DeepSpeed is not for this task"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", Settings(), "dynamo_backend is not for this task"),
    ],
)
def test_what_it_cannot_honour_or_what_contradicts_is_refused_in_a_line(monkeypatch, variable, value, own, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=message) as caught:
        honour_launcher(own, DEFAULTS)
    assert "\n" not in str(caught.value)
