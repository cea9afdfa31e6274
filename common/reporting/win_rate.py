"""How often one policy's replies are preferred to another's to the same prompts, also as if both were of one length."""

from collections.abc import Hashable, Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit

NUM_RESAMPLES = 1000
RIDGE = 1.0  # on phi, of the whole loss: the length explains no more than so many prompts can tell


def length_controlled_win_rate(
    preferences: Sequence[float] | np.ndarray, longer_by: Sequence[float] | np.ndarray
) -> float:
    """The win rate that is left where both replies are equally long.

    The preferences are fitted by ``sigmoid(theta + phi tanh(d / std(d)))`` of the difference d in length, with an L2
    penalty on phi; at d = 0 that is ``sigmoid(theta)``. The regression of AlpacaEval 2 (arXiv 2404.04475, section 3)
    without its term for the difficulty of a prompt, which takes many models to estimate.

    Args:
        preferences: (N,) of [0, 1]: the probability, or a label, that the first reply is the better one.
        longer_by: (N,) tokens that the first reply is longer by; all equal: nothing is controlled for.

    Raises:
        ValueError: naming the argument with a wrong length or value.
    """
    share, longer = np.asarray(preferences, dtype=float), np.asarray(longer_by, dtype=float)
    if share.ndim != 1 or len(share) == 0 or not ((share >= 0) & (share <= 1)).all():
        raise ValueError("preferences: must be (N,) numbers from 0 to 1")
    if longer.shape != share.shape:
        raise ValueError(f"longer_by: must be of shape {share.shape}, got {longer.shape}")
    spread = longer.std()
    if spread == 0:
        return float(share.mean())
    scaled = np.tanh(longer / spread)

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        logit = parameters[0] + parameters[1] * scaled
        loss = -(share * log_expit(logit) + (1 - share) * log_expit(-logit)).mean()
        slope = expit(logit) - share
        gradient = np.array([slope.mean(), (slope * scaled).mean()])
        pull = RIDGE / len(share) * np.array([0.01, 1.0]) * parameters  # theta stays finite where one side always wins
        return loss + (pull * parameters).sum() / 2, gradient + pull

    return float(expit(minimize(objective, np.zeros(2), jac=True, method="BFGS").x[0]))


def win_rate_figures(
    scores: Sequence[float],
    other_scores: Sequence[float],
    lengths: Sequence[int],
    other_lengths: Sequence[int],
    prompts: Sequence[Hashable] | None = None,
) -> dict[str, float]:
    """Replies against others to the same prompts, by a judge's scores, with 95 % bootstrap intervals over prompts.

    Args:
        scores, other_scores: (N,) of the judge; the higher one of a prompt wins, and equal ones are half a win each.
        lengths, other_lengths: (N,) in tokens.
        prompts: (N,) what each is a reply to, where a prompt was answered several times, as by policies of several
            seeds: a prompt is drawn with all that answers it. None: all are different.

    Returns:
        ``judge_gain`` (mean difference in score), ``win_rate``, ``win_rate_length_controlled``, each with ``_low`` and
        ``_high``: percentiles over prompts that are drawn again with a fixed generator.
    """
    gains = np.subtract(scores, other_scores)
    wins = (np.sign(gains) + 1) / 2
    longer = np.subtract(lengths, other_lengths).astype(float)
    places: dict[Hashable, list[int]] = {}
    for place, prompt in enumerate(range(len(wins)) if prompts is None else prompts):
        places.setdefault(prompt, []).append(place)
    answers = list(map(np.array, places.values()))
    draws = np.random.default_rng(0).integers(len(answers), size=(NUM_RESAMPLES, len(answers)))
    drawn = [np.concatenate([answers[unit] for unit in draw]) for draw in draws]
    figures: dict[str, float] = {}
    for name, figure in (
        ("judge_gain", lambda at: float(gains[at].mean())),
        ("win_rate", lambda at: float(wins[at].mean())),
        ("win_rate_length_controlled", lambda at: length_controlled_win_rate(wins[at], longer[at])),
    ):
        figures[name] = figure(np.arange(len(wins)))
        low, high = np.percentile([figure(at) for at in drawn], [2.5, 97.5])
        figures |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return figures
