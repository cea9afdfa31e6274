"""Token rewards that people compare learned ones with, as sources of the same contract.

Each is a :class:`common.reply_rewards.TokenScorer`: ``score_tokens(prompt_ids, completion_ids, masks) -> (B, T)``.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.reply_rewards import TokenScorer
from common.reply_surprise import Masks, reply_log_probabilities
from common.token_reward_model import TokenRewardModel, with_start_token


class LogRatioRewards:
    """Implicit rewards: ``scale * (log pi(y_t | s_t) - log pi_ref(y_t | s_t))`` of two language models.

    Args:
        tuned: an LM tuned on preferences.
        reference: the one that it was tuned from; both have the policy's tokens.
        scale: the coefficient of its training, such as DPO's beta.
    """

    def __init__(self, tuned: PreTrainedModel, reference: PreTrainedModel, scale: float = 1.0):
        self.tuned, self.reference, self.scale = tuned.eval(), reference.eval(), scale

    def score_tokens(self, prompt_ids: Tensor, completion_ids: Tensor, masks: Masks) -> Tensor:
        """See the class; 0 at padding."""
        tuned, reference = (
            reply_log_probabilities(lm, prompt_ids, completion_ids, masks) for lm in (self.tuned, self.reference)
        )
        return self.scale * (tuned - reference)


class PrefixDifferenceRewards:
    """Differences of a prefix score: what the reply is worth with the token, less what it was worth before it.

    Their sum over a reply is its score less that of the prompt alone.

    Args:
        model: a reward model whose output at a token scores everything up to it, such as one learnt with the
            granularity ``sequence``.
    """

    def __init__(self, model: TokenRewardModel):
        self.model = model.eval()

    @torch.no_grad()
    def score_tokens(self, prompt_ids: Tensor, completion_ids: Tensor, masks: Masks) -> Tensor:
        """See the class; 0 at padding. Prompts are padded on the left."""
        prompt_mask, mask = (part.bool() for part in masks)
        width = completion_ids.shape[1]
        if self.model.is_encoder_decoder:
            start = self.model.backbone.config.decoder_start_token_id
            ids, real = with_start_token(completion_ids, mask, start)
            scores = self.model(
                input_ids=prompt_ids, attention_mask=prompt_mask, decoder_input_ids=ids, decoder_attention_mask=real
            )
        else:
            ids, real = torch.cat([prompt_ids, completion_ids], 1), torch.cat([prompt_mask, mask], 1)
            scores = self.model(input_ids=ids, attention_mask=real)[:, -width - 1 :]
        return scores.diff(dim=-1).masked_fill(~mask, 0)


class EvenRewards:
    """The score of a whole reply, the reward of its last token, divided evenly over its tokens.

    Args:
        scorer: any source of token rewards.
    """

    def __init__(self, scorer: TokenScorer):
        self.scorer = scorer

    def score_tokens(self, prompt_ids: Tensor, completion_ids: Tensor, masks: Masks) -> Tensor:
        """See the class; 0 at padding."""
        rewards = self.scorer.score_tokens(prompt_ids, completion_ids, masks)
        mask = masks[1].bool().to(rewards.device)
        lengths = mask.sum(-1, keepdim=True)
        scores = rewards.gather(1, (lengths - 1).clamp(min=0))
        return (scores / lengths.clamp(min=1)).expand_as(rewards).masked_fill(~mask, 0)
