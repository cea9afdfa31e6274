import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from common.errors import UserError
from common.language_models.pretrained import load_pretrained, load_tokenizer
from common.token_reward_model import TokenRewardModel
from tests import tiny_models


@pytest.fixture
def folder(tmp_path):
    tiny_models.save("roberta", tmp_path / "lm")
    return tmp_path / "lm"


def test_a_folder_is_loaded_in_the_dtype_asked_for(folder):
    assert load_pretrained(AutoConfig, str(folder)).model_type == "roberta"
    model = load_pretrained(AutoModelForMaskedLM, str(folder), complete=True, dtype=torch.bfloat16)
    assert model.dtype == torch.bfloat16
    whole = load_pretrained(AutoModelForMaskedLM, str(folder), complete=True)
    assert torch.equal(whole.lm_head.dense.weight, tiny_models.make("roberta")[0].lm_head.dense.weight)
    tokenizer = load_tokenizer(AutoTokenizer, str(folder))
    assert (
        tokenizer(" great film <mask>")["input_ids"]
        == tiny_models.roberta_tokenizer()(" great film <mask>")["input_ids"]
    )


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_tied_weights_do_not_count_as_missing(kind, tmp_path):
    name = tiny_models.save(kind, tmp_path)
    if kind in tiny_models.MASKED:
        load_pretrained(AutoModelForMaskedLM, name, complete=True)
    else:
        load_pretrained(AutoModelForCausalLM, name, complete=True)
        load_pretrained(AutoModel, name, complete=True)


def test_a_missing_head_is_an_error_where_the_model_must_be_complete(tmp_path):
    tiny_models.make("roberta")[0].roberta.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks weights of RobertaForMaskedLM, among them 'lm_head"):
        load_pretrained(AutoModelForMaskedLM, str(tmp_path), complete=True)


def test_weights_of_another_shape_are_an_error(folder):
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.dense.weight"] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights of RobertaForMaskedLM, among them 'lm_head\.dense\.weight'"):
        load_pretrained(AutoModelForMaskedLM, str(folder), complete=True)


@pytest.mark.parametrize(
    "damage", ["no folder", "no weights", "torn weights", "torn config", "unknown type", "no config"]
)
def test_what_cannot_be_loaded_is_one_line_that_names_it(damage, folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = str(folder)
    config, weights = folder / "config.json", folder / "model.safetensors"
    if damage == "no folder":
        name = str(folder / "nowhere")
    elif damage == "no weights":
        weights.unlink()
    elif damage == "torn weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "torn config":
        config.write_text(config.read_text()[:30])
    elif damage == "unknown type":
        config.write_text(json.dumps({"model_type": "no-such-model"}))
    else:
        config.unlink()
    with pytest.raises(UserError) as caught:
        load_pretrained(AutoModelForMaskedLM, name, complete=True)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_of_another_kind_is_an_error(folder):
    gpt2 = tiny_models.save("gpt2", folder.parent / "gpt2")
    with pytest.raises(UserError, match=r"cannot load .* with AutoModelForMaskedLM"):
        load_pretrained(AutoModelForMaskedLM, gpt2)


@pytest.mark.parametrize("damage", ["no folder", "torn"])
def test_a_tokenizer_that_cannot_be_loaded_is_an_error(damage, folder):
    name = str(folder)
    if damage == "torn":
        (folder / "tokenizer.json").write_text("{")
    else:
        name = str(folder / "nowhere")
    with pytest.raises(UserError, match="cannot load the tokenizer of"):
        load_tokenizer(AutoTokenizer, name)


def test_an_unknown_built_in_name_lists_those_there_are():
    with pytest.raises(UserError, match="builtin/masked-lm"):
        load_pretrained(AutoModelForMaskedLM, "builtin/masked")


def test_loading_is_quiet_and_leaves_the_log_level_as_it_was(folder, caplog):
    library = logging.getLogger("transformers")
    before = library.level
    load_pretrained(AutoModelForCausalLM, tiny_models.save("gpt2", folder.parent / "gpt2"))
    with pytest.raises(UserError):
        load_pretrained(AutoModelForMaskedLM, str(folder / "nowhere"))
    assert library.level == before
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class Opened(Exception):
    """A file was opened that should not have been."""


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"a": "pytorch_model.bin"}},
        {"weight_map": {"a": "../elsewhere/model.safetensors"}},
        {"weight_map": {"a": "/etc/model.safetensors"}},
        {"weight_map": {"a": 3}},
        {"weight_map": ["model.safetensors"]},
        [],
    ],
)
def test_a_list_of_weight_files_that_leads_astray_is_refused_before_anything_is_opened(index, folder, monkeypatch):
    (folder / "model.safetensors").rename(folder / "elsewhere.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    def opened(*args, **kwargs):
        raise Opened

    monkeypatch.setattr(torch, "load", opened)
    monkeypatch.setattr(AutoModelForMaskedLM, "from_pretrained", opened)
    for load in (
        lambda: load_pretrained(AutoModelForMaskedLM, str(folder)),
        lambda: TokenRewardModel.from_pretrained(folder),
    ):
        with pytest.raises(UserError, match=r"model.safetensors.index.json' (names|cannot be read)"):
            load()


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 0}, {"num_attention_heads": "two"}, {"hidden_size": -4}, {"vocab_size": None},
        {"hidden_size": 7}, {"hidden_act": "no such"}, {"model_type": ["roberta"]},
        {"pad_token_id": 10**6}, {"max_position_embeddings": -1},
    ],
)  # fmt: skip
def test_an_odd_configuration_is_one_line(change, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=r"cannot load|lacks weights"):
        load_pretrained(AutoModelForMaskedLM, str(folder), complete=True)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": 3}', '{"version": "1.0", "model": {"type": "none"}}'])
def test_an_odd_tokenizer_is_one_line(content, folder):
    for file in folder.glob("*"):
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="cannot load the tokenizer"):
        load_tokenizer(AutoTokenizer, str(folder))
