"""Pieces of the user's own, by name: ``package.module:function`` in the place of a built-in aggregation or guidance.

=============  =====================================================  ========================================
piece          is called with                                         gives back
=============  =====================================================  ========================================
preference     of summaries: predictions, references, sources, a      N numbers, higher is better
               list of N texts each
preference     of replies: prompts, replies, a list of N each         N numbers, higher is better
preference     of prompts: prompts, P texts; probabilities (P, E, C)  (P,) numbers, higher is better
               of the classes on E examples; labels (E,)
aggregation    token_rewards (B, K, T), 0 at padding; mask (B, K, T)  scores (B, K), higher is better, which a
                                                                      gradient reaches through the rewards
guidance       token_rewards (N, T), 0 at padding; mask (N, T)        weights (N, T) of the tokens' likelihood,
                                                                      larger is more; of references >= 0
=============  =====================================================  ========================================
"""

import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError, nearest

FORM = "package.module:function"
FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_own(name: str) -> bool:
    """Whether a name is meant to be that of a function."""
    return ":" in name


def own_function(spec: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names, looked for where Python looks for modules.

    Raises:
        UserError: it has another form, the module cannot be imported, or holds no such function.
    """
    if not FUNCTION.fullmatch(spec):
        raise UserError(f"'{spec}' has not the form {FORM}")
    module_name, function_name = spec.split(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module of the user's runs when it is imported
        line = f"'{spec}': cannot import {module_name} ({type(error).__name__}: {error})"
        top = module_name.split(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name == top:  # the current folder is not on a script's path
            here = Path(f"{top}.py").is_file() or Path(top).is_dir()
            line += "; set PYTHONPATH=." if here else "; install it, or name its folder in PYTHONPATH"
        raise UserError(line) from error
    function = getattr(module, function_name, None)
    if function is None:
        names = [name for name in vars(module) if callable(getattr(module, name))]
        raise UserError(f"'{spec}': {module_name} has no '{function_name}'{nearest(function_name, names)}")
    if not callable(function):
        raise UserError(f"'{spec}': '{function_name}' is not a function")
    return function


def try_out(option: str, spec: str, **arguments: Any) -> Any:
    """What a function gives back for made-up arguments, before anything is written.

    Args:
        option: that names the function.
        spec: its value.
        arguments: by the names of the table above, handed over in their order.

    Raises:
        UserError: one line: it cannot be had, takes other arguments, or fails.
    """
    try:
        function = own_function(spec)
    except UserError as error:
        raise UserError(f"{option}: {error}") from None
    try:
        inspect.signature(function).bind(*arguments.values())
    except TypeError as error:
        raise UserError(f"{option}: '{spec}' is called with ({', '.join(arguments)}): {error}") from None
    except ValueError:
        pass  # a function of C says nothing of its arguments
    try:
        return function(*arguments.values())
    except Exception as error:  # anything, in a function of the user's
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{option}: '{spec}' fails on two made-up rows: {reason}") from None


def numbers(where: str, found: Any, shape: Sequence[int]) -> Tensor:
    """What a function gave back as finite numbers of a shape.

    Raises:
        UserError: it is something else.
    """
    try:
        tensor = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{where} gives back {type(found).__name__}, not numbers") from None
    if tuple(tensor.shape) != tuple(shape):
        raise UserError(f"{where} gives back numbers of shape {tuple(tensor.shape)}, not {tuple(shape)}")
    if not bool(tensor.isfinite().all()):
        raise UserError(f"{where} gives back a number that is not finite")
    return tensor


def check_aggregation(option: str, spec: str) -> None:
    """Try an aggregation on two sets of two sequences of three tokens, one of which is padded.

    Raises:
        UserError: see `try_out`; what it gives back are no scores, or no gradient reaches the rewards.
    """
    if not is_own(spec):
        return
    rewards, mask = _made_up((2, 2, 3))
    scores = numbers(f"{option}: '{spec}'", try_out(option, spec, token_rewards=rewards, mask=mask), (2, 2))
    if not scores.requires_grad:
        raise UserError(f"{option}: '{spec}' gives back scores that no gradient leads from to the rewards")


def check_guidance(option: str, spec: str, not_negative: bool) -> None:
    """Try a guidance on two sequences of three tokens, one of which is padded.

    Raises:
        UserError: see `try_out`; what it gives back are no weights, or negative ones where that makes no sense.
    """
    if not is_own(spec):
        return
    rewards, mask = _made_up((2, 3))
    weights = numbers(f"{option}: '{spec}'", try_out(option, spec, token_rewards=rewards, mask=mask), (2, 3))
    if not_negative and bool((weights < 0).any()):
        raise UserError(f"{option}: '{spec}' gives back a negative weight, and references are weighed by shares")


def _made_up(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    mask = torch.ones(shape, dtype=torch.bool)
    mask[..., -1, -1] = False
    return torch.linspace(0.1, 1.2, mask.numel()).view(shape).masked_fill(~mask, 0).requires_grad_(), mask
