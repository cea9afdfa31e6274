"""Samples prompts, scores them with the task LM and draws ranking sets from them: what rewards are learnt from."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from common.swaps import draw_places, swap_tokens
from common.training.engine import Engine
from common.training.progress import Progress
from common.training.random_keys import Purpose, keyed_generator
from prompt_task.prompt_policy import PromptPolicy
from prompt_task.prompt_scorer import PromptScorer
from prompt_task.settings import RewardSettings


@dataclass
class RankedPrompts:
    """Prompts with their preference and the ranking sets drawn from them.

    Attributes:
        tokens: (N, T) token ids.
        preferences: (N,) score of each prompt, higher is better.
        sets: (B, K) indices into the prompts.
    """

    tokens: torch.Tensor
    preferences: torch.Tensor
    sets: torch.Tensor


@dataclass
class SwappedPrompts:
    """Pairs of a prompt and itself with one token replaced by the policy's likeliest other one.

    Attributes:
        tokens: (2, N, T) token ids, the prompts and below each what it became.
        preferences: (2, N) score of each.
        places: (N,) column of the token in question.
    """

    tokens: torch.Tensor
    preferences: torch.Tensor
    places: torch.Tensor


def draw_sets(count: int, sets: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Draw `sets` ranking sets of `size` different prompts out of `count`: (B, K)."""
    return torch.rand(sets, count, generator=generator).argsort(-1)[:, :size]


class PromptRanker:
    """Ranks what the policy writes now.

    Args:
        policy: that is asked.
        settings: how many prompts and sets, and from which tokens.
        engine: of the run.
        generator: of all draws, on the CPU.
    """

    def __init__(self, policy: PromptPolicy, settings: RewardSettings, engine: Engine, generator: torch.Generator):
        self.policy = policy
        self.settings = settings
        self.engine = engine
        self.generator = generator

    def pool(
        self,
        scorer: PromptScorer,
        stop_requested: Callable[[], bool],
        most_promising: Callable[[torch.Tensor, int], torch.Tensor] | None = None,
    ) -> torch.Tensor | None:
        """With `reward_pool_size`, new prompts (P, T) from which whole rounds draw, scored on all examples.

        `most_promising` picks so many of `screening` times as many samples.
        """
        size = self.settings.reward_pool_size
        if not size:
            return None
        pool = self.sample(size) if most_promising is None else self._screened(size, most_promising)
        texts = self.policy.texts(pool)
        chunk = self.settings.prompt_train_batch_size
        with Progress(len(texts), "scoring the prompt pool", "prompt") as bar:
            for start in range(0, len(texts), chunk):
                if stop_requested():
                    break
                scorer.probabilities(texts[start : start + chunk])
                bar.update(len(texts[start : start + chunk]))
        return pool

    def _screened(self, size: int, most_promising: Callable[[torch.Tensor, int], torch.Tensor]) -> torch.Tensor:
        return most_promising(self.sample(size * self.settings.screening), size)

    def sample(self, count: int) -> torch.Tensor:
        """Prompts (N, T) of the policy as it is."""
        with self.engine.autocast():
            return self.policy.sample(count, self.generator, self.settings.top_k, self.settings.top_p).tokens

    def ranked(self, scorer: PromptScorer, pool: torch.Tensor | None, share: float = 1.0) -> RankedPrompts:
        """Sample prompts, score them on a random share of the scorer's examples, draw ranking sets."""
        settings = self.settings
        count = settings.prompt_train_batch_size
        if pool is None:
            tokens = self.sample(count)
        else:
            tokens = pool[torch.randperm(len(pool), generator=self.generator)[:count]]
        examples = len(scorer.examples)
        chosen = None
        if share < 1.0:
            kept = max(math.ceil(share * examples - 1e-9), 1)  # as published: 52 of 64
            chosen = torch.randperm(examples, generator=self.generator)[:kept].sort().values
        scores = scorer.score(self.policy.texts(tokens), chosen, standardize=settings.compute_zscore).score
        sets = draw_sets(count, settings.reward_learning_batch_size, settings.reward_learning_samples, self.generator)
        return RankedPrompts(tokens, scores, sets)

    def swapped(self, scorer: PromptScorer, prompts: torch.Tensor) -> SwappedPrompts:
        """One token of each prompt (N, T) replaced, and both scored."""
        generator = keyed_generator(Purpose.PROMPT_SWAPS, self.settings.random_seed)
        # A prompt has no end token: one that nothing stands behind keeps the last token among the choices.
        mask = torch.ones(len(prompts), prompts.shape[1] + 1, dtype=torch.bool)
        places = draw_places(mask, torch.rand(len(prompts), generator=generator))
        with self.engine.autocast():
            logits = self.policy.logits_at(prompts, places).cpu()
        tokens = torch.stack([prompts, swap_tokens(prompts, places, logits)])
        scores = scorer.score(self.policy.texts(tokens.flatten(0, 1)), standardize=self.settings.compute_zscore)
        return SwappedPrompts(tokens, scores.score.view(2, -1), places)
