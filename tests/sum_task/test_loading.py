"""Models as the options ask for them."""

import pytest
import torch

from common.errors import UserError
from sum_task.loading import load_policy, load_reward_model
from tests.sum_task.tiny import byte_tokenizer


def test_position_embeddings(tiny):
    long = {"model_name_or_path": tiny.llama, "max_source_length": 400}
    with pytest.raises(UserError, match="resize_position_embeddings=true"):
        tiny.policy(**long, resize_position_embeddings=False)
    with pytest.raises(UserError, match="cannot be lengthened"):
        tiny.policy(**long)


def test_policy_of_random_weights(tiny):
    settings = tiny.settings(model_name_or_path="null", config_name=tiny.t5)
    torch.manual_seed(5)
    fresh = load_policy(settings.models, settings.text, settings.evaluation)
    assert fresh.lm.config.d_model == 16
    assert load_reward_model(settings.models, settings.text, fresh).model.backbone.config.d_model == 16
    with pytest.raises(UserError, match="did you mean 't5'"):
        tiny.policy(model_name_or_path="null", model_type="t55")
    with pytest.raises(UserError, match="is a t5, not a bart"):
        tiny.policy(model_type="bart")


def test_tokenizer_of_another_name_lengthens_the_vocabulary(tiny):
    policy = tiny.policy(tokenizer_name=tiny.byte_t5)
    assert len(policy.tokenizer) == len(byte_tokenizer())
    embeddings = policy.lm.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    assert embeddings.num_embeddings >= len(policy.tokenizer)
