"""The reward model of summaries, in the tokens of the policy or in others."""

import pytest
import torch

from common.token_reward_model import bound_rewards
from sum_task.batching import Padded, pad
from sum_task.loading import load_policy, load_reward_model
from sum_task.sampling import sample_summaries
from tests.sum_task.tiny import ARTICLES, batch_of, noise


@pytest.mark.parametrize("head", ["after", "likelihood"])
@pytest.mark.parametrize(
    "pair", [("t5", "t5"), ("llama", "llama"), ("t5", "byte_t5"), ("t5", "llama"), ("llama", "t5")]
)
def test_rewards_of_a_summary_do_not_depend_on_what_stands_beside_it(tiny, pair, head):
    names = {"model_name_or_path": getattr(tiny, pair[0]), "rew_model_name_or_path": getattr(tiny, pair[1])}
    names["rew_head"] = head
    policy = tiny.policy(**names, separator=" : ")
    reward = tiny.reward_model(policy, **names, separator=" : ")
    assert reward.reads_policy_tokens == (pair[0] == pair[1])
    lists = [[5, 6, 7, 1], [8, 1], [9, 4, 1], [3, 3, 3, 3], [1], [10, 11, 1]]
    summaries = pad(lists, policy.pad_id)
    with torch.no_grad():
        together = reward.policy_rewards(batch_of(policy, ARTICLES), summaries)
        own, own_summaries = reward.own_rewards(batch_of(policy, ARTICLES), summaries)
        for row, ids in enumerate(lists):
            alone = reward.policy_rewards(
                batch_of(policy, [ARTICLES[row // 2]]), Padded(torch.tensor([ids]), torch.ones(1, len(ids)).bool())
            )
            torch.testing.assert_close(together[row, : len(ids)], alone[0], atol=1e-5, rtol=1e-5)
    assert bool((together[~summaries.mask] == 0).all())
    # Carried over or not, the rewards of a summary keep their sum.
    torch.testing.assert_close(together.sum(-1), (own * own_summaries.mask).sum(-1), atol=1e-5, rtol=1e-5)


def test_reward_of_a_token_does_not_look_at_later_ones(tiny):
    policy = tiny.policy()
    reward = tiny.reward_model(policy)
    mask = torch.ones(1, 3, dtype=torch.bool)
    with torch.no_grad():
        one = reward.policy_rewards(batch_of(policy, ARTICLES[:1]), Padded(torch.tensor([[5, 6, 7]]), mask))
        two = reward.policy_rewards(batch_of(policy, ARTICLES[:1]), Padded(torch.tensor([[5, 6, 9]]), mask))
    assert torch.equal(one[0, :2], two[0, :2])
    assert one[0, 2] != two[0, 2]  # read where the token itself has just been read


def test_likelihood_head_knows_what_the_language_model_knows_and_is_told_by_its_folder(tiny, tmp_path):
    """The backbone is the policy itself, so a reward is bound(0.25 log p + 1) of the policy's own probability."""
    for name in ("t5", "llama"):
        settings = tiny.settings(model_name_or_path=getattr(tiny, name), rew_head="likelihood", separator=" : ")
        policy = load_policy(settings.models, settings.text, settings.evaluation)
        policy.lm.eval()
        reward = load_reward_model(settings.models, settings.text, policy)
        batch, summaries = batch_of(policy, ARTICLES[:2]), pad([[5, 6, 7, 1], [8, 1]], policy.pad_id)
        with torch.no_grad():
            logits = policy.logits(policy.encode(batch.sources), summaries)
            log_p = logits.log_softmax(-1).gather(-1, summaries.tokens.unsqueeze(-1)).squeeze(-1)
            expected = bound_rewards(0.25 * log_p + 1, "softplus").masked_fill(~summaries.mask, 0)
            torch.testing.assert_close(reward.policy_rewards(batch, summaries), expected, atol=1e-6, rtol=0)
            reward.save_pretrained(tmp_path / name)
            published = tiny.settings(rew_checkpoint_path=tmp_path / name, separator=" : ")
            again = load_reward_model(published.models, published.text, policy)
            torch.testing.assert_close(again.policy_rewards(batch, summaries), expected, atol=1e-6, rtol=0)


def test_encoder_runs_once_for_all_samples_of_a_batch(tiny):
    policy = tiny.policy()
    reward = tiny.reward_model(policy)
    rows = []
    for model in (policy.lm, reward.model.backbone):
        model.get_encoder().register_forward_hook(
            lambda m, a, k, o: rows.append(k["input_ids"].shape[0]), with_kwargs=True
        )
    batch = batch_of(policy, ARTICLES)
    samples = sample_summaries(policy, policy.encode(batch.sources), 4, noise(12), None, 1.0)
    reward.own_rewards(batch, samples)
    assert rows == [3, 3]
