import json
import math
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BartConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    T5Config,
)

from common.aggregation import aggregate_token_rewards
from common.errors import UserError
from common.grounding_loss import list_mle_loss
from common.token_reward_model import (
    HEADS,
    TokenRewardConfig,
    TokenRewardModel,
    bound_rewards,
    saturation_share,
    with_start_token,
)

VOCABULARY = 40
BACKBONES = {
    "gpt2": GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
    ),
    "llama": LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        attention_dropout=0.1,
    ),
    "t5": T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2),
    "bart": BartConfig(
        vocab_size=VOCABULARY,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
    ),
}
DECODER_ONLY = ["gpt2", "llama"]
ENCODER_DECODER = ["t5", "bart"]


def config_of(name, **options):
    # A gain far above the published one, so that rewards differ from token to token.
    options = {"head_hidden_size": 32, "head_init_gain": 2.0} | options
    return TokenRewardConfig(backbone=BACKBONES[name].to_dict(), **options)


def model_of(name, seed=0, **options):
    torch.manual_seed(seed)
    model = TokenRewardModel(config_of(name, **options)).eval()
    with torch.no_grad():  # the backbones' own initialisation makes all states nearly equal
        for parameter in model.backbone.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def gradient(value, tensor, **options):
    """Gradient of the value, summed, with respect to the tensor."""
    return torch.autograd.grad(value.sum(), tensor, **options)[0]


def token_ids(rows, length, seed=0):
    return torch.randint(1, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def inputs_of(model, rows=4, length=6):
    """Sequences without padding, as the model reads them; an encoder-decoder gets two for each source."""
    if not model.is_encoder_decoder:
        return {"input_ids": token_ids(rows, length)}
    return {"input_ids": token_ids(rows // 2, 5, seed=1), "decoder_input_ids": token_ids(rows, length)}


@pytest.fixture(params=[(name, head) for name in BACKBONES for head in HEADS], ids="-".join)
def model(request):
    name, head = request.param
    return model_of(name, head=head)


def test_a_forgotten_start_token_is_not_silent():
    model = model_of("t5")
    model.backbone.config.decoder_start_token_id = 0
    sequences, sources = token_ids(4, 6), token_ids(2, 5, seed=1)
    with pytest.warns(UserWarning, match="begins without the start token 0"):
        model(input_ids=sources, decoder_input_ids=sequences)
    again = TokenRewardModel(model.config, model.backbone)
    ids, mask = with_start_token(sequences, torch.ones_like(sequences), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again(input_ids=sources, decoder_input_ids=ids, decoder_attention_mask=mask)


def test_transformers_auto_classes_load_a_saved_one_without_a_warning(tmp_path, caplog):
    model_of("gpt2").save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = AutoModel.from_pretrained(tmp_path)
        config = AutoConfig.from_pretrained(tmp_path)
    assert (type(loaded), type(config), caplog.records) == (TokenRewardModel, TokenRewardConfig, [])
    torch.testing.assert_close(loaded(token_ids(2, 3)), model_of("gpt2")(token_ids(2, 3)))


class TestReplies:
    def test_they_get_the_rewards_of_a_sequence_of_their_own(self, model):
        # Two prompts of 5 and 2 tokens, padded on the left; replies of 3 and 1 tokens to the first, one to the other
        prompt_ids, reply_ids = token_ids(2, 5, seed=1), token_ids(4, 3, seed=2).view(2, 2, 3)
        prompt_mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]])
        reply_mask = torch.tensor([[[1, 1, 1], [1, 0, 0]], [[1, 1, 0], [0, 0, 0]]])
        model.backbone.config.decoder_start_token_id = 0
        rewards = model.reply_rewards(prompt_ids, prompt_mask, reply_ids, reply_mask)
        assert rewards.shape == (2, 2, 3) and model.shares_prompts
        assert not rewards[reply_mask == 0].any()
        for b, k in reply_mask.any(-1).nonzero().tolist():
            prompt, reply = prompt_ids[b][prompt_mask[b] == 1][None], reply_ids[b, k][reply_mask[b, k] == 1][None]
            if model.is_encoder_decoder:
                start = model.backbone.config.decoder_start_token_id
                alone = model(prompt, decoder_input_ids=with_start_token(reply, torch.ones_like(reply), start)[0])[
                    :, 1:
                ]
            else:
                alone = model(torch.cat([prompt, reply], 1))[:, prompt.shape[1] :]
            found = rewards[b, k, : reply.shape[1]]
            torch.testing.assert_close(found, alone[0], rtol=1e-5, atol=1e-6)

    def test_gradients_of_shared_prompts_are_those_of_repeated_ones(self, model, monkeypatch):
        if model.is_encoder_decoder:
            pytest.skip("encodes each source once in any case")
        prompt_ids, reply_ids = token_ids(2, 5, seed=1), token_ids(6, 4, seed=2).view(2, 3, 4)
        gradients = []
        for shared in (True, False):
            assert model.shares_prompts
            monkeypatch.setattr(model, "_shares_prompts", shared)
            model.zero_grad()
            rewards = model.reply_rewards(prompt_ids, prompt_ids.ge(0), reply_ids, reply_ids.ge(0))
            (rewards.square() * torch.arange(4)).sum().backward()
            gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)

    def test_a_model_without_keys_and_values_reads_each_reply_with_its_prompt(self):
        torch.manual_seed(0)
        fields = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, state_size=4).to_dict()
        model = TokenRewardModel(TokenRewardConfig(backbone=fields, head_hidden_size=8, head_init_gain=2.0)).eval()
        prompt_ids, reply_ids = token_ids(1, 4, seed=1), token_ids(2, 3, seed=2)[None]
        rewards = model.reply_rewards(prompt_ids, prompt_ids.ge(0), reply_ids, reply_ids.ge(0))
        assert not model.shares_prompts
        alone = model(torch.cat([prompt_ids, reply_ids[0, :1]], 1))[:, 4:]
        torch.testing.assert_close(rewards[0, :1], alone, rtol=1e-4, atol=1e-5)


def test_the_linear_head_starts_small_without_a_bias_and_without_a_bound():
    model = model_of("llama", head="linear", bound="none")
    torch.manual_seed(0)
    fresh = TokenRewardModel(config_of("llama", head="linear", bound="none"))
    assert [name for name, _ in fresh.head.named_parameters()] == ["weight"]
    assert fresh.head.weight.std().item() == pytest.approx(1 / 17, rel=0.5)  # type: ignore[operator]
    assert (model(token_ids(4, 6)) < 0).any()


class TestBounds:
    def test_softplus_at_hand_computed_points(self):
        # x = 1: 1 - ln 2, then ln(1 + e^(1 - ln 2)) = ln(1 + e/2). x -> inf: 1, then ln(1 + e). x -> -inf: 1e-8.
        rewards = bound_rewards(torch.tensor([1.0, 1e6, -1e6], dtype=torch.float64), "softplus")
        expected = [math.log(1 + math.e / 2), math.log(1 + math.e), 1e-8]
        torch.testing.assert_close(rewards, torch.tensor(expected, dtype=torch.float64), rtol=1e-7, atol=1e-12)

    def test_sigmoid_at_hand_computed_points(self):
        rewards = bound_rewards(torch.tensor([0.0, math.log(3), -math.log(3), 1e6]), "sigmoid")
        torch.testing.assert_close(rewards, torch.tensor([0.5, 0.75, 0.25, 1.0]))

    @pytest.mark.parametrize("bound", ["softplus", "sigmoid"])
    def test_rewards_increase_within_their_range(self, bound):
        rewards = bound_rewards(torch.linspace(-12, 12, 500, dtype=torch.float64), bound)
        assert (rewards.diff() > 0).all()
        assert rewards.min() > {"softplus": 1e-8, "sigmoid": 0}[bound]
        assert rewards.max() < {"softplus": math.log(1 + math.e), "sigmoid": 1}[bound]

    @pytest.mark.parametrize("bound", ["softplus", "sigmoid"])
    def test_nan_becomes_zero_without_a_gradient(self, bound):
        raw = torch.tensor([math.nan, 0.5], requires_grad=True)
        rewards = bound_rewards(raw, bound)
        grad = gradient(rewards, raw)
        assert rewards[0] == 0
        assert rewards[1] > 0
        assert grad[0] == 0
        assert grad[1] > 0

    @pytest.mark.parametrize("bound", ["softplus", "sigmoid"])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_extremes_stay_finite_and_within_the_range(self, bound, dtype):
        raw = torch.tensor([-math.inf, -6e4, -30.0, 0.0, 30.0, 6e4, math.inf], dtype=dtype, requires_grad=True)
        rewards = bound_rewards(raw, bound)
        assert rewards.dtype == torch.float32
        assert rewards.isfinite().all()
        assert (rewards >= 0).all()
        assert (rewards <= 1.3133).all()
        assert gradient(rewards, raw).isfinite().all()
        if bound == "softplus":
            assert (rewards > 0).all()

    @pytest.mark.parametrize("bound", ["softplus", "sigmoid"])
    def test_gradient_agrees_with_finite_differences(self, bound):
        raw = torch.linspace(-4, 4, 9, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda x: bound_rewards(x, bound), (raw,))

    def test_bad_input_is_named(self):
        with pytest.raises(ValueError, match=r"^bound: "):
            bound_rewards(torch.zeros(1), "tanh")
        with pytest.raises(ValueError, match=r"^raw: "):
            bound_rewards(torch.zeros(1).long(), "sigmoid")


class TestInitialisation:
    def test_published_head(self):
        # Xavier uniform: +- gain * sqrt(6 / (fan in + fan out))
        weights = TokenRewardModel(TokenRewardConfig(backbone=BACKBONES["gpt2"].to_dict())).state_dict()
        assert weights["head.0.weight"].shape == (2048, 16)
        for layer, fans in (("head.0", 16 + 2048), ("head.2", 2048 + 1)):
            limit = 1e-4 * math.sqrt(6 / fans)
            assert 0.95 * limit < weights[f"{layer}.weight"].abs().max() <= limit
            assert (weights[f"{layer}.bias"] == -1e-4).all()

    def test_the_global_seed_decides(self):
        first, second, other = (model_of("gpt2", seed=seed).state_dict() for seed in (1, 1, 2))
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert not torch.equal(first["head.0.weight"], other["head.0.weight"])

    @pytest.mark.parametrize("name", BACKBONES)
    def test_from_backbone_keeps_the_pretrained_weights_and_adds_a_fresh_head(self, name, tmp_path):
        # From the language model with its LM head, as published models are saved.
        language_model = AutoModelForSeq2SeqLM if name in ENCODER_DECODER else AutoModelForCausalLM
        language_model.from_config(BACKBONES[name]).save_pretrained(tmp_path)
        pretrained = AutoModel.from_pretrained(tmp_path).state_dict()
        torch.manual_seed(5)
        model = TokenRewardModel.from_backbone(str(tmp_path), bound="sigmoid", head_hidden_size=8, head_init_gain=0.5)
        assert not model.training
        assert not model.backbone.training
        loaded = model.backbone.state_dict()
        assert loaded.keys() == pretrained.keys()
        assert all(torch.equal(loaded[key], pretrained[key]) for key in pretrained)
        assert (model.config.bound, model.config.head_hidden_size) == ("sigmoid", 8)
        head = model.head.state_dict()
        assert (head["0.bias"] == -0.5).all()
        assert head["0.weight"].std() > 0.1

        torch.manual_seed(5)
        again = TokenRewardModel.from_backbone(str(tmp_path), bound="sigmoid", head_hidden_size=8, head_init_gain=0.5)
        assert torch.equal(again.head.state_dict()["0.weight"], head["0.weight"])

    def test_from_backbone_in_bfloat16(self, tmp_path):
        AutoModel.from_config(BACKBONES["gpt2"]).save_pretrained(tmp_path)
        model = TokenRewardModel.from_backbone(str(tmp_path), head_hidden_size=8, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in model.backbone.parameters()} == {torch.bfloat16}
        assert {parameter.dtype for parameter in model.head.parameters()} == {torch.float32}
        rewards = model(token_ids(2, 3))
        assert rewards.dtype == torch.float32
        assert (rewards > 0).all()

    @pytest.mark.parametrize("autocast", [False, True])
    def test_tokens_do_not_tie_in_half_precision(self, autocast, tmp_path):
        AutoModel.from_config(BACKBONES["gpt2"]).save_pretrained(tmp_path)
        dtype = torch.float32 if autocast else torch.bfloat16
        model = TokenRewardModel.from_backbone(str(tmp_path), head_hidden_size=64, head_init_gain=0.1, dtype=dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), torch.no_grad():
            rewards = model(token_ids(40, 20))
        assert rewards.dtype == torch.float32
        # 800 states of 16 numbers each are all different; a head in bf16 left fewer than a hundred rewards of them.
        assert len(rewards.unique()) > 700

    def test_an_incomplete_backbone_is_refused(self, tmp_path):
        AutoModel.from_config(BACKBONES["gpt2"]).save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        del weights["h.1.mlp.c_fc.weight"]
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=r"h\.1\.mlp\.c_fc\.weight"):
            TokenRewardModel.from_backbone(str(tmp_path))

    def test_an_encoder_that_sees_the_future_is_refused(self):
        bert = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
        with pytest.raises(UserError, match="bert"):
            TokenRewardModel(TokenRewardConfig(backbone=bert.to_dict()))

    @pytest.mark.parametrize(
        ("options", "argument"),
        [
            ({"bound": "relu"}, "bound"),
            ({"head": "before"}, "head"),
            ({"head_hidden_size": 0}, "head_hidden_size"),
            ({"head_init_gain": -1.0}, "head_init_gain"),
        ],
    )
    def test_bad_configuration_is_named(self, options, argument):
        with pytest.raises(ValueError, match=f"^{argument}: "):
            config_of("gpt2", **options)

    @pytest.mark.parametrize("backbone", [None, {}, {"n_embd": 16}])
    def test_the_backbone_must_be_known(self, backbone):
        with pytest.raises(ValueError, match=r"^backbone: "):
            TokenRewardModel(TokenRewardConfig(backbone=backbone))


class TestSavingAndLoading:
    @pytest.mark.parametrize(
        ("head", "bound"), [("after", "softplus"), ("after", "sigmoid"), ("likelihood", "softplus")]
    )
    @pytest.mark.parametrize("name", BACKBONES)
    def test_a_reloaded_model_gives_the_same_rewards(self, name, head, bound, tmp_path):
        model = model_of(name, bound=bound, head=head)
        inputs = inputs_of(model)
        rewards = model(**inputs)
        assert rewards.std() > 1e-2
        model.save_pretrained(tmp_path)
        torch.manual_seed(1234)
        loaded = TokenRewardModel.from_pretrained(tmp_path)
        assert not loaded.training
        assert loaded.config.head == head
        torch.testing.assert_close(loaded(**inputs), rewards, rtol=0, atol=1e-6)

    def test_a_model_from_a_backbone_reloads_too(self, tmp_path):
        AutoModel.from_config(BACKBONES["gpt2"]).save_pretrained(tmp_path / "backbone")
        model = TokenRewardModel.from_backbone(str(tmp_path / "backbone"), head_hidden_size=8, head_init_gain=1.0)
        model.save_pretrained(tmp_path / "reward_model")
        loaded = TokenRewardModel.from_pretrained(tmp_path / "reward_model")
        torch.testing.assert_close(loaded(token_ids(3, 4)), model(token_ids(3, 4)), rtol=0, atol=1e-6)
        assert str(tmp_path) not in (tmp_path / "reward_model" / "config.json").read_text()

    def test_the_dtype_can_be_chosen(self, tmp_path):
        model_of("gpt2").save_pretrained(tmp_path)
        loaded = TokenRewardModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in loaded.backbone.parameters()} == {torch.bfloat16}
        assert {parameter.dtype for parameter in loaded.head.parameters()} == {torch.float32}

    @pytest.mark.parametrize("head", ["after", "likelihood"])
    def test_half_precision_reloads_with_the_head_in_float32(self, head, tmp_path):
        AutoModelForCausalLM.from_config(BACKBONES["gpt2"]).save_pretrained(tmp_path / "backbone")
        options = {"head_hidden_size": 8, "head_init_gain": 1.0, "head": head, "dtype": torch.bfloat16}
        model = TokenRewardModel.from_backbone(str(tmp_path / "backbone"), **options)
        model.save_pretrained(tmp_path / "saved")
        for loaded in (
            TokenRewardModel.from_pretrained(tmp_path / "saved", **dtype) for dtype in ({}, {"dtype": "auto"})
        ):
            assert loaded.backbone.dtype == torch.bfloat16
            for name, weight in model.head.state_dict().items():
                assert torch.equal(loaded.head.state_dict()[name], weight)
            assert torch.equal(loaded(token_ids(3, 4)), model(token_ids(3, 4)))

    def test_nothing_is_pickled(self, tmp_path):
        model_of("gpt2").save_pretrained(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]

    @pytest.mark.parametrize("name", BACKBONES)
    def test_a_plain_language_model_is_refused(self, name, tmp_path):
        AutoModel.from_config(BACKBONES[name]).save_pretrained(tmp_path)
        with pytest.raises(UserError, match=f"{name}, not a token reward model: there is no reward head"):
            TokenRewardModel.from_pretrained(tmp_path)

    @pytest.mark.parametrize("lost", ["head.0.weight", "head.2.bias", "backbone.wpe.weight"])
    def test_a_folder_that_lost_weights_is_refused(self, lost, tmp_path):
        model_of("gpt2").save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        del weights[lost]
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match=lost):
            TokenRewardModel.from_pretrained(tmp_path)

    def test_the_weights_of_the_backbone_under_the_config_of_a_reward_model_are_refused(self, tmp_path):
        model = model_of("gpt2")
        model.save_pretrained(tmp_path)
        model.backbone.save_pretrained(tmp_path / "backbone")
        (tmp_path / "backbone" / "model.safetensors").replace(tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=r"head\.0\.bias"):
            TokenRewardModel.from_pretrained(tmp_path)

    def test_a_head_of_another_size_is_refused(self, tmp_path):
        model_of("gpt2").save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        config["head_hidden_size"] = 31
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=r"head\.0"):
            TokenRewardModel.from_pretrained(tmp_path)

    @pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
    def test_a_folder_without_a_file_is_refused(self, missing, tmp_path):
        model_of("gpt2").save_pretrained(tmp_path)
        (tmp_path / missing).unlink()
        with pytest.raises(UserError, match="cannot load a token reward model"):
            TokenRewardModel.from_pretrained(tmp_path)

    def test_a_truncated_file_is_refused(self, tmp_path):
        model_of("gpt2").save_pretrained(tmp_path)
        weights = tmp_path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(UserError, match="cannot load a token reward model"):
            TokenRewardModel.from_pretrained(tmp_path)

    def test_pickled_weights_are_refused(self, tmp_path):
        model = model_of("gpt2")
        model.save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        with pytest.raises(UserError, match="cannot load a token reward model"):
            TokenRewardModel.from_pretrained(tmp_path)

    def test_adapters_must_be_merged_before_saving(self, tmp_path):
        model = model_of("gpt2")
        model._hf_peft_config_loaded = True  # what transformers sets when adapters are added
        with pytest.raises(UserError, match="merge the adapters"):
            model.save_pretrained(tmp_path)


class TestRewards:
    def test_shape_dtype_and_range(self, model):
        rewards = model(**inputs_of(model))
        assert rewards.shape == (4, 6)
        assert rewards.dtype == torch.float32
        assert (rewards > 0).all()
        assert (rewards < 1.3133).all()

    def test_the_reward_of_a_token_depends_on_it_and_what_stands_before_alone(self, model):
        inputs = inputs_of(model)
        target = "decoder_input_ids" if model.is_encoder_decoder else "input_ids"
        changed = inputs | {target: inputs[target].clone()}
        changed[target][:, 3] = inputs[target][:, 3] % (VOCABULARY - 1) + 1
        difference = (model(**changed) - model(**inputs)).abs()
        assert (difference[:, :3] < 1e-6).all()
        assert (difference[:, 3] > 1e-6).all()
        assert (difference[:, 4:] > 1e-6).any()

    def test_the_head_reads_the_last_hidden_state(self):
        model = model_of("gpt2")
        ids = token_ids(2, 5)
        states = model.backbone(ids).last_hidden_state
        head = model.head.state_dict()
        hidden = (states @ head["0.weight"].T + head["0.bias"]).relu()
        raw = (hidden @ head["2.weight"].T + head["2.bias"]).squeeze(-1)
        torch.testing.assert_close(model(ids), bound_rewards(raw, "softplus"))

    @pytest.mark.parametrize("left", [0, 1, 3])
    @pytest.mark.parametrize("pad_id", [0, -100, 7])
    def test_padding_of_the_sequences_changes_nothing(self, model, left, pad_id):
        inputs = inputs_of(model)
        target = "decoder_input_ids" if model.is_encoder_decoder else "input_ids"
        mask_name = "decoder_attention_mask" if model.is_encoder_decoder else "attention_mask"
        padded = torch.full((4, 9), pad_id)
        mask = torch.zeros(4, 9, dtype=torch.long)
        padded[:, left : left + 6] = inputs[target]
        mask[:, left : left + 6] = 1
        rewards = model(**inputs | {target: padded, mask_name: mask})
        torch.testing.assert_close(rewards[:, left : left + 6], model(**inputs), rtol=0, atol=1e-6)
        assert (rewards[mask == 0] == 0).all()

    def test_sequences_of_different_lengths_and_sides_share_a_batch(self, model):
        inputs = inputs_of(model)
        target = "decoder_input_ids" if model.is_encoder_decoder else "input_ids"
        mask_name = "decoder_attention_mask" if model.is_encoder_decoder else "attention_mask"
        spans = [(0, 6), (0, 2), (3, 6), (1, 5)]
        mask = torch.zeros(4, 6)
        for row, (start, end) in enumerate(spans):
            mask[row, start:end] = 1
        ragged = inputs[target].masked_fill(mask == 0, -100)
        rewards = model(**inputs | {target: ragged, mask_name: mask})
        for row, (start, end) in enumerate(spans):
            alone = {target: inputs[target][row : row + 1, start:end]}
            if model.is_encoder_decoder:
                alone["input_ids"] = inputs["input_ids"][row // 2 : row // 2 + 1]
            torch.testing.assert_close(rewards[row : row + 1, start:end], model(**alone), rtol=0, atol=1e-6)

    def test_padding_leaves_every_gradient_finite(self, model):
        inputs = inputs_of(model)
        mask_name = "decoder_attention_mask" if model.is_encoder_decoder else "attention_mask"
        mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1], [0, 1, 1, 1, 0, 0]])
        rewards = model(**inputs | {mask_name: mask})
        scores = aggregate_token_rewards(rewards.unsqueeze(0), mask.unsqueeze(0), "avg")
        loss = list_mle_loss(scores, torch.tensor([[3.0, 2.0, 1.0, 0.0]]))
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert name not in ("head.0.weight", "head.scale") or parameter.grad.abs().sum() > 0

    def test_dropout_acts_in_training_mode_alone(self, model):
        inputs = inputs_of(model)
        assert torch.equal(model(**inputs), model(**inputs))
        model.train()
        assert not torch.equal(model(**inputs), model(**inputs))

    def test_float64(self, model):
        inputs = inputs_of(model)
        expected = model(**inputs)
        rewards = model.double()(**inputs)
        assert rewards.dtype == torch.float64
        torch.testing.assert_close(rewards.float(), expected, rtol=0, atol=1e-5)

    def test_no_cache_is_built(self, model, monkeypatch):
        calls = []
        forward = type(model.backbone).forward

        def spy(self, **options):
            calls.append(options)
            return forward(self, **options)

        monkeypatch.setattr(type(model.backbone), "forward", spy)
        model(**inputs_of(model))
        assert [options["use_cache"] for options in calls] == [False]


@pytest.mark.parametrize("name", ENCODER_DECODER)
class TestSources:
    def test_the_sequences_of_a_source_stand_together(self, name):
        model = model_of(name)
        inputs = inputs_of(model)
        rewards = model(**inputs)
        each = model(
            input_ids=inputs["input_ids"].repeat_interleave(2, dim=0), decoder_input_ids=inputs["decoder_input_ids"]
        )
        torch.testing.assert_close(rewards, each, rtol=0, atol=1e-6)
        # The source matters: with the two exchanged, the rewards are others.
        exchanged = model(**inputs | {"input_ids": inputs["input_ids"].flip(0)})
        assert (rewards - exchanged).abs().max() > 1e-3

    def test_the_encoder_runs_once_a_source(self, name):
        model = model_of(name)
        rows = []
        model.backbone.get_encoder().register_forward_hook(
            lambda module, args, options, output: rows.append(options["input_ids"].shape[0]), with_kwargs=True
        )
        model(**inputs_of(model))
        assert rows == [2]

    @pytest.mark.parametrize("left", [0, 2])
    def test_padding_of_the_sources_changes_nothing(self, name, left):
        model = model_of(name)
        inputs = inputs_of(model)
        padded = torch.full((2, 8), -100)
        padded[:, left : left + 5] = inputs["input_ids"]
        mask = (padded >= 0).long()
        rewards = model(padded, mask, inputs["decoder_input_ids"])
        torch.testing.assert_close(rewards, model(**inputs), rtol=0, atol=1e-6)

    def test_sources_of_different_lengths_and_sides_share_a_batch(self, name):
        model = model_of(name)
        inputs = inputs_of(model)
        mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
        ragged = inputs["input_ids"].masked_fill(mask == 0, -100)
        rewards = model(ragged, mask, inputs["decoder_input_ids"])
        for row, source in enumerate((inputs["input_ids"][:1, 2:], inputs["input_ids"][1:, :4])):
            pair = slice(2 * row, 2 * row + 2)
            alone = model(source, decoder_input_ids=inputs["decoder_input_ids"][pair])
            torch.testing.assert_close(rewards[pair], alone, rtol=0, atol=1e-6)

    def test_encoder_states_can_be_used_again(self, name):
        model = model_of(name)
        inputs = inputs_of(model)
        mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
        expected = model(attention_mask=mask, **inputs)
        states = model.encode(inputs.pop("input_ids"), mask)
        assert states.shape == (2, 5, 16)
        assert (states[mask == 0] == 0).all()
        for encoder_outputs in (states, (states,)):
            rewards = model(attention_mask=mask, encoder_outputs=encoder_outputs, **inputs)
            torch.testing.assert_close(rewards, expected, rtol=0, atol=1e-6)

    def test_encoder_states_of_the_backbone_itself_are_taken(self, name):
        model = model_of(name)
        inputs = inputs_of(model)
        outputs = model.backbone.get_encoder()(input_ids=inputs["input_ids"])
        rewards = model(encoder_outputs=outputs, decoder_input_ids=inputs["decoder_input_ids"])
        torch.testing.assert_close(rewards, model(**inputs), rtol=0, atol=1e-6)

    def test_the_start_token_shifts_rewards_by_one_column(self, name):
        model = model_of(name)
        sources, targets = token_ids(3, 5, seed=1), token_ids(3, 4)
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]])
        ids, decoder_mask = with_start_token(targets, mask, start_token_id=0)
        assert ids.tolist() == [[0, *row] for row in targets.tolist()]
        assert decoder_mask.tolist() == [[1, *row] for row in mask.tolist()]
        rewards = model(sources, decoder_input_ids=ids, decoder_attention_mask=decoder_mask)[:, 1:]
        # The third target, without its padding: start, then its two tokens.
        bare = model(sources[2:], decoder_input_ids=torch.cat([torch.zeros(1, 1).long(), targets[2:, 2:]], dim=1))
        torch.testing.assert_close(rewards[2:, 2:], bare[:, 1:], rtol=0, atol=1e-6)
        assert (rewards[mask == 0] == 0).all()


class TestErrors:
    @pytest.mark.parametrize("name", DECODER_ONLY)
    @pytest.mark.parametrize(
        ("inputs", "argument"),
        [
            ({}, "input_ids"),
            ({"input_ids": torch.ones(3).long()}, "input_ids"),
            ({"input_ids": torch.ones(2, 0).long()}, "input_ids"),
            ({"input_ids": torch.ones(2, 3)}, "input_ids"),
            ({"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.ones(2, 4)}, "attention_mask"),
            ({"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.eye(3)[1:] * 2}, "attention_mask"),
            ({"input_ids": torch.ones(2, 3).long(), "attention_mask": torch.zeros(2, 3)}, "attention_mask"),
            (
                {"input_ids": torch.ones(2, 3).long(), "decoder_input_ids": torch.ones(2, 3).long()},
                "decoder_input_ids",
            ),
            (
                {"input_ids": torch.ones(2, 3).long(), "decoder_attention_mask": torch.ones(2, 3)},
                "decoder_attention_mask",
            ),
            ({"input_ids": torch.ones(2, 3).long(), "encoder_outputs": torch.ones(2, 3, 16)}, "encoder_outputs"),
        ],
    )
    def test_decoder_only(self, name, inputs, argument):
        with pytest.raises(ValueError, match=f"^{argument}: "):
            model_of(name)(**inputs)

    def test_a_decoder_only_backbone_encodes_no_sources(self):
        with pytest.raises(ValueError, match=r"^input_ids: "):
            model_of("gpt2").encode(token_ids(2, 3))

    @pytest.mark.parametrize("name", ENCODER_DECODER)
    @pytest.mark.parametrize(
        ("inputs", "argument"),
        [
            ({"input_ids": token_ids(2, 3)}, "decoder_input_ids"),
            ({"decoder_input_ids": token_ids(2, 3)}, "input_ids"),
            (
                {
                    "input_ids": token_ids(2, 3),
                    "encoder_outputs": torch.ones(2, 3, 16),
                    "decoder_input_ids": token_ids(2, 3),
                },
                "input_ids",
            ),
            ({"input_ids": token_ids(2, 3), "decoder_input_ids": token_ids(3, 3)}, "decoder_input_ids"),
            (
                {
                    "input_ids": token_ids(2, 3),
                    "decoder_input_ids": token_ids(2, 3),
                    "decoder_attention_mask": torch.zeros(2, 3),
                },
                "decoder_attention_mask",
            ),
            (
                {
                    "encoder_outputs": torch.ones(2, 3, 16),
                    "attention_mask": torch.ones(2, 4),
                    "decoder_input_ids": token_ids(2, 3),
                },
                "attention_mask",
            ),
        ],
    )
    def test_encoder_decoder(self, name, inputs, argument):
        with pytest.raises(ValueError, match=f"^{argument}: "):
            model_of(name)(**inputs)


@pytest.mark.parametrize("name", BACKBONES)
class TestLikelihoodHead:
    def test_the_reward_is_the_bounded_log_probability_of_the_language_model(self, name, tmp_path):
        lm_class = AutoModelForSeq2SeqLM if name in ENCODER_DECODER else AutoModelForCausalLM
        lm = lm_class.from_config(BACKBONES[name]).eval()
        lm.save_pretrained(tmp_path)
        model = TokenRewardModel.from_backbone(str(tmp_path), head="likelihood")
        inputs = inputs_of(model, rows=2)
        ids = inputs["decoder_input_ids" if model.is_encoder_decoder else "input_ids"]
        log_p = lm(**inputs).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
        # scale 0.25 and offset 1.0; nothing is read before the first token, which counts as certain
        expected = bound_rewards(0.25 * torch.nn.functional.pad(log_p, (1, 0)) + 1.0, "softplus")
        torch.testing.assert_close(model(**inputs), expected, rtol=0, atol=1e-6)
        # ... and so it stays in a part of the sequences, and in half precision within its digits.
        torch.testing.assert_close(model(**inputs, targets_from=2)[:, 2:], expected[:, 2:], rtol=0, atol=1e-6)
        half = TokenRewardModel.from_backbone(str(tmp_path), head="likelihood", dtype=torch.bfloat16)(**inputs)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, expected, rtol=0, atol=0.03)

    def test_the_rewards_of_all_tokens_hold_those_of_each(self, name):
        model = model_of(name, head="likelihood")
        inputs = inputs_of(model)
        target = "decoder_input_ids" if model.is_encoder_decoder else "input_ids"
        mask_name = "decoder_attention_mask" if model.is_encoder_decoder else "attention_mask"
        inputs[mask_name] = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0]])
        table = model.rewards_of_all(targets_from=2, **inputs)
        assert table.shape == (4, 4, VOCABULARY)
        own = model(targets_from=2, **inputs)
        assert (own[:, :2] == 0).all()
        chosen = table.gather(-1, inputs[target][:, 2:].unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(chosen, own[:, 2:], rtol=0, atol=1e-6)
        # Another token in place of the one at column 3: its reward stands in the table.
        other = inputs[target].clone()
        other[:3, 3] = 7
        torch.testing.assert_close(model(**inputs | {target: other})[:3, 3], table[:3, 1, 7], rtol=0, atol=1e-6)

    def test_expectations_are_exact_over_the_policys_distribution(self, name):
        model = model_of(name, head="likelihood")
        inputs = inputs_of(model)
        mask_name = "decoder_attention_mask" if model.is_encoder_decoder else "attention_mask"
        inputs[mask_name] = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1] * 6])
        policy_logits = torch.randn(4, 5, VOCABULARY, generator=torch.Generator().manual_seed(0))
        rewards, expected = model.rewards_and_expectations(policy_logits, targets_from=1, **inputs)
        table = model.rewards_of_all(targets_from=1, **inputs)
        torch.testing.assert_close(rewards, model(**inputs)[:, 1:], rtol=0, atol=1e-6)
        torch.testing.assert_close(expected, (policy_logits.softmax(-1) * table).sum(-1), rtol=0, atol=1e-6)
        # Tokens that the policy has not got are left out.
        few = model.rewards_and_expectations(policy_logits[..., :5], targets_from=1, **inputs)[1]
        torch.testing.assert_close(few, (policy_logits[..., :5].softmax(-1) * table[..., :5]).sum(-1))

    def test_alternatives_are_looked_up(self, name):
        model = model_of(name, head="likelihood")
        inputs = inputs_of(model)
        alternatives = torch.randint(VOCABULARY, (4, 4, 3), generator=torch.Generator().manual_seed(0))
        rewards, others = model.alternative_rewards(alternatives, targets_from=2, **inputs)
        torch.testing.assert_close(rewards, model(**inputs)[:, 2:], rtol=0, atol=1e-6)
        table = model.rewards_of_all(targets_from=2, **inputs)
        torch.testing.assert_close(others, table.gather(-1, alternatives), rtol=0, atol=1e-6)

    def test_only_this_head_gives_rewards_of_all_tokens(self, name):
        model = model_of(name)
        with pytest.raises(ValueError, match=r"^head: 'after' gives no rewards of all tokens"):
            model.rewards_of_all(**inputs_of(model))


class TestAlternatives:
    """Other tokens in the place of each, read in one pass by the heads that read states.

    Eight alternatives in each of 32 places of 8 summaries, ``builtin/seq2seq``, one shared core: 0.09 s, where a pass
    for each place with its eight alternatives as a batch took 0.67 s; the rewards differ by at most 6e-7.
    """

    @pytest.mark.parametrize("head", ["after", "linear"])
    @pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
    def test_they_get_the_rewards_of_a_pass_of_their_own(self, name, head):
        model = model_of(name, head=head)
        assert model.tells_alternatives
        inputs = inputs_of(model)
        target = "decoder_input_ids" if model.is_encoder_decoder else "input_ids"
        mask_name = "decoder_attention_mask" if model.is_encoder_decoder else "attention_mask"
        mask = torch.tensor([[1] * 6, [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0]])
        inputs[mask_name] = mask
        alternatives = torch.randint(VOCABULARY, (4, 4, 3), generator=torch.Generator().manual_seed(0))
        rewards, others = model.alternative_rewards(alternatives, targets_from=2, **inputs)
        torch.testing.assert_close(rewards, model(**inputs)[:, 2:], rtol=0, atol=1e-6)
        for place in range(4):
            for k in range(3):
                replaced = inputs[target].clone()
                replaced[:, 2 + place] = alternatives[:, place, k]
                alone = model(**inputs | {target: replaced})[:, 2 + place]
                torch.testing.assert_close(others[:, place, k], alone, rtol=0, atol=1e-5)
        assert (others[mask[:, 2:] == 0] == 0).all()
        # The expectation is over the policy's likeliest tokens, their probabilities as shares of their sum.
        policy_logits, chances = torch.full((4, 4, VOCABULARY + 3), -30.0), torch.tensor([0.7, 0.2, 0.1])
        policy_logits[..., VOCABULARY + 1] = 9.0  # a token that the reward model has not got
        policy_logits.scatter_(-1, torch.tensor([5, 9, 11]).expand(4, 4, 3), chances.log().expand(4, 4, 3))
        given, expected = model.rewards_and_expectations(policy_logits, targets_from=2, likeliest=2, **inputs)
        assert torch.equal(given, rewards)
        both = model.alternative_rewards(torch.tensor([5, 9]).expand(4, 4, 2), targets_from=2, **inputs)[1]
        torch.testing.assert_close(expected, both @ torch.tensor([7 / 9, 2 / 9]), rtol=0, atol=1e-6)

    def test_a_family_without_positions_to_choose_is_told_by_one_line(self):
        model = model_of("bart")
        assert not model.tells_alternatives
        with pytest.raises(ValueError, match=r"^alternatives: the backbone, a bart, cannot be asked"):
            model.alternative_rewards(torch.zeros(4, 6, 1, dtype=torch.long), **inputs_of(model))


def test_a_backbone_without_its_lm_head_has_no_likelihood(tmp_path):
    untied = LlamaConfig.from_dict(BACKBONES["llama"].to_dict() | {"tie_word_embeddings": False})
    AutoModel.from_config(untied).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks weights of LlamaForCausalLM, among them 'lm_head\.weight'"):
        TokenRewardModel.from_backbone(str(tmp_path), head="likelihood")


@pytest.mark.parametrize("bound", ["softplus", "sigmoid"])
def test_saturated_are_the_rewards_at_the_ends_of_their_range(bound):
    assert saturation_share(bound_rewards(torch.linspace(-1.0, 1.0, 9), bound), bound).item() == 0
    assert saturation_share(bound_rewards(torch.tensor([-50.0, 0.0, 0.5, 50.0]), bound), bound).item() == 0.5
    with pytest.raises(ValueError, match="bound"):
        saturation_share(torch.ones(2), "tanh")
