"""What `accelerate launch` or its configuration file asks of a run beside its processes: honoured, or refused.

accelerate hands its settings to the processes as environment variables. One that would change what is computed and that
nobody reads is the worst of both: the user believes in it, and the numbers know nothing of it.
"""

import os
from collections.abc import Mapping
from typing import Any, TypeVar

from accelerate import Accelerator

from common.errors import UserError
from common.training.settings import TaskSettings

S = TypeVar("S", bound=TaskSettings)

# What wraps a model, and fits around a plain forward pass alone.
WRAPPERS = {"ACCELERATE_USE_FSDP": "FSDP", "ACCELERATE_USE_DEEPSPEED": "DeepSpeed"}
REFUSED = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}


def honour_launcher(settings: S, defaults: Mapping[str, Any], plain_forward: bool = False) -> S:
    """Take over the device, the mixed precision and the gradient accumulation that accelerate was asked for.

    ``no`` and 1, which `accelerate launch` also passes on unasked, ask for nothing. An option that has its default is
    taken to be unset and gets accelerate's value; one with another value has to be equal to it.

    Args:
        settings: a task's options. One that has no such option cannot honour it.
        defaults: the default of each option.
        plain_forward: what is trained is a plain forward pass, around which FSDP and DeepSpeed fit. Other steps sample,
            rank and score.

    Raises:
        UserError: accelerate and the options contradict each other, or the task cannot do what accelerate asks for.
    """
    for variable, name in (REFUSED if plain_forward else WRAPPERS | REFUSED).items():
        if _is_on(variable):
            raise UserError(
                f"accelerate: {name} is not for this task, whose steps are no plain forward pass; turn it off"
            )
    if os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower() != "no":
        raise UserError("accelerate: dynamo_backend is not for this task, whose models are not compiled; set it to no")
    own = settings.options()
    asked: dict[str, Any] = {"device": "cpu"} if _is_on("ACCELERATE_USE_CPU") else {}
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", "bf16", "fp16"):
        raise UserError(f"accelerate: mixed_precision={precision} is not for this task; allowed: no, bf16, fp16")
    if precision != "no":
        asked["mixed_precision"] = precision
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if not steps.isdecimal() or int(steps) < 1:
        raise UserError(f"accelerate: gradient_accumulation_steps={steps} is not a whole number of at least 1")
    if steps != "1":
        asked["gradient_accumulation_steps"] = int(steps)
    for name, value in asked.items():
        if name not in own:
            raise UserError(f"accelerate: {name}={value} is not for this task, which has no such option; leave it out")
        if own[name] not in (value, defaults.get(name)):
            raise UserError(
                f"{name}: {own[name]} here and {value} for accelerate contradict each other; set one of them"
            )
    return settings.replaced(**asked) if asked else settings


def check_wrapped(accelerator: Accelerator) -> None:
    """Refuse to go on where accelerate was asked to wrap models and does not, as of FSDP on CPUs or in one process.

    Raises:
        UserError: it is so.
    """
    kind = accelerator.distributed_type.value
    for variable, name in WRAPPERS.items():
        if _is_on(variable) and kind != name.upper():
            raise UserError(
                f"accelerate: {name} was asked for, and accelerate does without it here ({kind}); it needs several "
                "processes, each with a GPU"
            )


def _is_on(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1", "yes", "on")
