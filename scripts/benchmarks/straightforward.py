"""The straightforward way of few-shot prompt generation, as one writes it first: the thing to beat.

It computes the same numbers as the project. Everything is batched, and nothing in it is slow on purpose; it only does
not ask which part of the work the answer needs.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.grounding_loss import list_mle_loss
from common.token_reward_model import TokenRewardModel
from prompt_task.few_shot_data import DatasetSpec, Example
from prompt_task.prompt_policy import PromptPolicy
from prompt_task.settings import FewShotSettings


class Straightforward:
    """Scoring, a reward-learning step and a policy step."""

    def __init__(
        self,
        task_lm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        spec: DatasetSpec,
        examples: Sequence[Example],
        policy: PromptPolicy,
        reward_model: TokenRewardModel,
        settings: FewShotSettings,
    ):
        self.task_lm = task_lm
        self.tokenizer = tokenizer
        self.template = spec.masked_template
        self.verbalizer_ids = [tokenizer.encode(word, add_special_tokens=False)[0] for word in spec.verbalizers]
        self.examples = list(examples)
        self.policy = policy
        self.reward_model = reward_model
        self.settings = settings
        self.reward_optimizer = torch.optim.Adam(reward_model.parameters(), lr=settings.reward.rew_learning_rate)
        self.policy_optimizer = torch.optim.Adam(policy.adaptor.parameters(), lr=settings.policy.learning_rate)

    @torch.no_grad()
    def class_probabilities(self, prompts: Sequence[str], examples: Sequence[Example]) -> torch.Tensor:
        """(P, E, C): all prompts x examples in one batch, logits of every position and the whole vocabulary."""
        mask = str(self.tokenizer.mask_token)
        texts = [
            self.template.replace("{prompt}", prompt).replace("<mask>", mask).replace("{sentence}", example.text)
            for prompt in prompts
            for example in examples
        ]
        batch = self.tokenizer(texts, padding=True, return_tensors="pt")
        logits = self.task_lm(**batch).logits  # (P * E, longest, V)
        rows, positions = (batch["input_ids"] == self.tokenizer.mask_token_id).nonzero(as_tuple=True)
        class_logits = logits[rows, positions][:, self.verbalizer_ids]  # (P * E, C)
        return class_logits.softmax(-1).view(len(prompts), len(examples), -1)

    def score(self, prompts: Sequence[str], examples: Sequence[Example]) -> torch.Tensor:
        """(P,): the sequence-level preference."""
        probabilities = self.class_probabilities(prompts, examples)
        labels = torch.tensor([example.label for example in examples]).expand(len(prompts), -1).unsqueeze(-1)
        own = probabilities.gather(-1, labels).squeeze(-1)
        other = probabilities.scatter(-1, labels, -1).amax(-1)
        gap = own - other
        settings = self.settings
        return (
            gap * torch.where(gap > 0, settings.preference.correct_coeff, settings.preference.incorrect_coeff)
        ).mean(-1)

    @torch.no_grad()
    def sample(self, count: int) -> torch.Tensor:
        """(N, T): tokens drawn one by one, with the LM's cache."""
        inputs, cache, tokens = self.policy.source_ids.expand(count, -1), None, []
        for _ in range(self.policy.prompt_length):
            output = self.policy.read(inputs, past_key_values=cache, use_cache=True)
            cache, logits = output.past_key_values, output.logits[:, 0]
            if self.settings.policy.top_k is not None and self.settings.policy.top_k < logits.shape[-1]:
                smallest = logits.topk(self.settings.policy.top_k).values[:, -1:]
                logits = logits.masked_fill(logits < smallest, -torch.inf)
            inputs = torch.multinomial(logits.softmax(-1), 1)
            tokens.append(inputs)
        return torch.cat(tokens, 1)

    def token_rewards(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N, T)."""
        source = self.policy.source_ids.expand(len(tokens), -1)
        return self.reward_model(torch.cat([source, tokens], 1))[:, source.shape[1] :]

    def reward_loss(self, tokens: torch.Tensor, preferences: torch.Tensor, sets: torch.Tensor) -> torch.Tensor:
        """ListMLE of ranking sets (B, K): the reward model reads all B x K sequences."""
        rewards = self.token_rewards(tokens[sets].flatten(0, 1))
        return list_mle_loss(rewards.view(*sets.shape, -1).sum(-1), preferences[sets])

    def reward_step(self) -> float:
        """Sample prompts, score them on a part of the examples, fit the reward model to ranking sets of them."""
        tokens = self.sample(self.settings.reward.prompt_train_batch_size)
        kept = round(self.settings.reward.reward_example_share * len(self.examples))
        examples = [self.examples[i] for i in torch.randperm(len(self.examples))[:kept]]
        return self.reward_update(tokens, self.score(self.policy.tokenizer.batch_decode(tokens), examples))

    def reward_update(self, tokens: torch.Tensor, preferences: torch.Tensor) -> float:
        """One optimizer step of the reward model on ranking sets drawn from scored prompts."""
        settings = self.settings
        sets = torch.rand(settings.reward.reward_learning_batch_size, len(tokens)).argsort(-1)
        sets = sets[:, : settings.reward.reward_learning_samples]
        self.reward_model.train()
        loss = self.reward_loss(tokens, preferences, sets)
        self.reward_optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.reward_model.parameters(), settings.reward.gradient_clip_norm)
        self.reward_optimizer.step()
        return loss.item()

    def policy_logits(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N, T, V): the policy reads the prompts that it has written once more, to have a gradient."""
        source = self.policy.source_ids.expand(len(tokens), -1)
        inputs = torch.cat([source, tokens[:, :-1]], 1)
        return self.policy.logits(inputs, last=tokens.shape[1])

    def policy_loss(self, tokens: torch.Tensor) -> torch.Tensor:
        """REINFORCE with the learned token rewards, and entropy."""
        self.reward_model.eval()
        with torch.no_grad():
            weights = self.token_rewards(tokens)
        log_p = self.policy_logits(tokens).log_softmax(-1)
        chosen = log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        negative_entropy = (log_p.exp() * log_p).sum(-1).mean()
        return -(weights * chosen).mean() + self.settings.policy.max_entropy_coeff * negative_entropy

    def policy_update(self, tokens: torch.Tensor) -> float:
        """One optimizer step on sampled prompts."""
        loss = self.policy_loss(tokens)
        self.policy_optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.adaptor.parameters(), self.settings.reward.gradient_clip_norm)
        self.policy_optimizer.step()
        return loss.item()

    def policy_step(self) -> tuple[float, float]:
        """Sample, update, and score some of the samples on all examples for the log: (loss, mean score)."""
        tokens = self.sample(self.settings.policy.num_reinforce_samples)
        loss = self.policy_update(tokens)
        logged = self.policy.tokenizer.batch_decode(tokens[: self.settings.reward.prompt_train_batch_size])
        return loss, self.score(logged, self.examples).mean().item()
