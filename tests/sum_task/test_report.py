"""What the page of a run says of tokens."""

import pytest
import torch

from sum_task.batching import Padded
from sum_task.data import Row
from sum_task.loading import load_policy, load_reward_model
from sum_task.report import compared_tokens
from sum_task.score_tokens import batches_of, token_texts


@pytest.mark.parametrize("head", ["after", "likelihood"])
def test_advantages_and_wrong_preferences(tiny, head):
    settings = tiny.settings(rew_head=head)
    policy = load_policy(settings.models, settings.text, settings.evaluation)
    torch.manual_seed(0)
    reward = load_reward_model(settings.models, settings.text, policy)
    rows = [Row("the storm hit a town", "a storm"), Row("fire in the city", "the city on fire")]
    found = compared_tokens(reward, policy, rows, likeliest=2)
    marks = []
    with torch.no_grad():
        [batch] = batches_of(reward, rows)
        tokens, mask = batch.targets.tokens, batch.targets.mask
        logits = policy.logits(policy.encode(batch.sources), batch.targets)
        rewards, expected = reward.judge(batch, batch.targets, logits, 2)
        for row, ids in enumerate(batch.targets.lists()):
            advantages, preferred = found[row]
            assert advantages is not None and preferred is not None
            assert advantages == pytest.approx((rewards - expected)[row, : len(ids)].tolist())
            assert len(preferred) == len(ids)
            for place in range(len(ids)):
                order = logits[row, place, : len(policy.tokenizer)].argsort(descending=True)
                other = int(order[0] if order[0] != tokens[row, place] else order[1])
                replaced = tokens.clone()
                replaced[row, place] = other
                swapped = reward.policy_rewards(batch, Padded(replaced, mask))[row, place]
                text = token_texts(policy.tokenizer, [other])[0]
                assert preferred[place] == (text if swapped > rewards[row, place] else None)
                marks.append(preferred[place])
    assert set(marks) != {None}
