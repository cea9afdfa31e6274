"""Metrics of the `evaluate` library as scores of single summaries.

``evaluate:NAME?key=f1&lang=en`` asks for one. NAME is what ``evaluate.load`` takes: a metric of the hub, such as
``bertscore``, or a local folder or file. Behind the ``?`` stand, each once and in any order:

* ``key``: which entry of the result is the score; needed where it has several numbers.
* ``config``: the metric's configuration, where it has some.
* ``lower_is_better=true``: the score is the negative number, so that higher is better.
* any other ``name=value``: an argument of the metric's ``compute``. Values are read as YAML: ``5`` is a number,
  ``true`` a truth value, ``[rougeL]`` a list.

A metric is code that is fetched and run. That happens only where one is asked for by its name; the project's own METEOR
and ROUGE are in `sum_task.meteor` and `sum_task.rouge`.
"""

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from common.errors import UserError, nearest

PREFIX = "evaluate:"
_INPUTS = ("predictions", "references", "sources")
_PROBE = "A storm hit the town on Monday."


@dataclass(frozen=True)
class MetricSpec:
    """What ``evaluate:NAME?...`` asks for.

    Attributes:
        text: the words it was made from.
        path: NAME.
        key: of the result, or None where it has one number alone.
        config: configuration of the metric, or None.
        lower_is_better: whether the score is the negative number.
        arguments: of ``compute``.
    """

    text: str
    path: str
    key: str | None
    config: str | None
    lower_is_better: bool
    arguments: dict[str, Any]

    @property
    def name(self) -> str:
        """A short name for tables: that of the metric, with the key where there is one."""
        own = Path(self.path).stem
        return own if self.key in (None, own) else f"{own}_{self.key}"

    @classmethod
    def from_text(cls, text: str) -> "MetricSpec":
        """Read the compact form.

        Raises:
            UserError: it has not that form.
        """
        path, _, query = text.removeprefix(PREFIX).partition("?")
        if not text.startswith(PREFIX) or not path:
            raise UserError(f"'{text}' has not the form {PREFIX}NAME or {PREFIX}NAME?key=KEY&argument=value")
        found: dict[str, Any] = {}
        for part in query.split("&") if query else []:
            name, equals, value = part.partition("=")
            if not equals or not name.isidentifier() or name in found:
                problem = "comes twice" if name in found else "is not of the form name=value"
                raise UserError(f"'{text}': '{part}' behind the ? {problem}")
            try:
                found[name] = yaml.safe_load(unquote(value))
            except yaml.YAMLError:
                raise UserError(f"'{text}': the value of {name} is no YAML") from None
        key, config = (found.pop(name, None) for name in ("key", "config"))
        lower = found.pop("lower_is_better", False)
        if not isinstance(lower, bool):
            raise UserError(f"'{text}': lower_is_better must be true or false")
        return cls(text, path, None if key is None else str(key), None if config is None else str(config), lower, found)


class LibraryMetric:
    """One metric of the library, which gives a number for every summary."""

    def __init__(self, spec: MetricSpec, module: Any) -> None:
        self.spec = spec
        self.name = spec.name
        self._module = module
        features = module.features if isinstance(module.features, list) else [module.features]
        self._inputs = [name for name in features[0] if name in _INPUTS]
        if unknown := [name for name in features[0] if name not in (*_INPUTS, *spec.arguments)]:
            raise UserError(
                f"'{spec.text}': it needs '{unknown[0]}' for each text, where summaries have predictions, references "
                "and sources"
            )
        # A list with one number for one summary has one for each of several; a plain number is that of all together.
        self._is_list = isinstance(self._result([_PROBE], [_PROBE], [_PROBE]), list)

    def __call__(self, predictions: Sequence[str], references: Sequence[str], sources: Sequence[str]) -> list[float]:
        """The score of each summary.

        A metric that gives a list is called once; one that gives a number is called a summary at a time.

        Raises:
            UserError: it fails, or gives something else than one finite number a summary.
        """
        if self._is_list:
            found = self._result(list(predictions), list(references), list(sources)) if predictions else []
        else:
            rows = zip(predictions, references, sources, strict=True)
            found = [self._result([one], [other], [source]) for one, other, source in rows]
        if len(found) != len(predictions):
            raise UserError(f"'{self.spec.text}': it gave {len(found)} numbers for {len(predictions)} summaries")
        for place, number in enumerate(found):
            if not isinstance(number, numbers.Real) or not math.isfinite(number):
                raise UserError(f"'{self.spec.text}': for summary {place} of {len(found)} it gave {number}")
        return [-float(number) if self.spec.lower_is_better else float(number) for number in found]

    def _result(self, predictions: list[str], references: list[str], sources: list[str]) -> Any:
        """The entry of the result that counts: a list or a number."""
        texts = {"predictions": predictions, "references": references, "sources": sources}
        try:
            result = self._module.compute(**{name: texts[name] for name in self._inputs}, **self.spec.arguments)
        except Exception as error:  # what a metric's code may raise is not known
            raise UserError(f"'{self.spec.text}': the metric failed: {_one_line(error)}") from error
        scores = {name: value for name, value in result.items() if _is_score(value)}
        key = self.spec.key
        if key is None:
            if len(scores) != 1:
                found = f"has {', '.join(scores)}; choose one with ?key=" if scores else "has no number"
                raise UserError(f"'{self.spec.text}': its result {found}")
            key = next(iter(scores))
        if key not in scores:
            raise UserError(f"'{self.spec.text}': its result has no score '{key}'{nearest(key, list(scores))}")
        value = scores[key]
        return value.tolist() if hasattr(value, "tolist") else list(value) if isinstance(value, tuple) else value


def _is_score(value: Any) -> bool:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return all(isinstance(number, numbers.Real) for number in value)
    return isinstance(value, numbers.Real)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def load_metric(text: str) -> LibraryMetric:
    """Load the metric that ``evaluate:NAME?...`` asks for, and try it on one summary.

    Raises:
        UserError: the words have not that form, the metric cannot be loaded or does not score single summaries.
    """
    spec = MetricSpec.from_text(text)
    import evaluate  # it imports much

    try:
        module = evaluate.load(spec.path, spec.config, keep_in_memory=True)
    except Exception as error:
        raise UserError(f"'{text}': the library evaluate cannot load it: {_one_line(error)}") from error
    return LibraryMetric(spec, module)


def load_metrics(texts: Sequence[str]) -> list[LibraryMetric]:
    """Load several metrics, each under a name of its own.

    Raises:
        UserError: see `load_metric`; or two have one name.
    """
    names = [MetricSpec.from_text(text).name for text in texts]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"eval_metrics: two are called {name}; give them different keys, or run them one by one")
    return [load_metric(text) for text in texts]
