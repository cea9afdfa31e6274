"""Entropies are computed once, by whoever asks, and never taken from what is damaged or another model's."""

import logging

import pytest
import torch
from safetensors.torch import load_file, save

from common.language_models import kept_entropies
from common.language_models.kept_entropies import KeptEntropies
from common.reply_rewards import padded
from common.reply_surprise import reply_entropies
from tests import tiny_models

PROMPT, REPLIES = [5, 6, 7], [[8, 9], [10, 11, 12, 13]]


@pytest.fixture
def model(tmp_path):
    return tiny_models.save("llama", tmp_path / "lm")


def loads(count: int = 0):
    """Gives the model, and fails where it is asked more than `count` times."""
    calls = []

    def load():
        calls.append(1)
        assert len(calls) <= count, "the model is loaded though all is known"
        return tiny_models.make("llama")[0]

    return load


def expected():
    ids, mask = padded(REPLIES)
    prompts = torch.tensor([PROMPT] * 2)
    return reply_entropies(tiny_models.make("llama")[0], prompts, ids, (torch.ones_like(prompts), mask))


def test_what_is_known_is_not_computed_again(model, tmp_path):
    first = KeptEntropies(loads(1), model, tmp_path / "kept")
    torch.testing.assert_close(first.of(PROMPT, REPLIES), expected())
    first.of(PROMPT, REPLIES)
    assert first.computed == 1
    first.write()
    again = KeptEntropies(loads(0), model, tmp_path / "kept")
    assert torch.equal(again.of(PROMPT, REPLIES), first.of(PROMPT, REPLIES))
    assert again.computed == 0
    # Others are computed and join them.
    more = KeptEntropies(loads(1), model, tmp_path / "kept")
    more.of(PROMPT[1:], REPLIES)
    more.write()
    [file] = (tmp_path / "kept").iterdir()
    assert len(load_file(file)) == 2


def test_runs_side_by_side_lose_nothing_of_each_other(model, tmp_path):
    one, other = (KeptEntropies(loads(1), model, tmp_path / "kept") for _ in range(2))
    one.of(PROMPT, REPLIES)
    other.of(PROMPT[1:], REPLIES)
    one.write()
    other.write()
    later = KeptEntropies(loads(0), model, tmp_path / "kept")
    later.of(PROMPT, REPLIES)
    later.of(PROMPT[1:], REPLIES)


def test_another_model_has_its_own(model, tmp_path):
    first = KeptEntropies(loads(1), model, tmp_path / "kept")
    first.of(PROMPT, REPLIES)
    first.write()
    other = KeptEntropies(loads(1), tiny_models.save("llama", tmp_path / "other", seed=1), tmp_path / "kept")
    other.of(PROMPT, REPLIES)
    assert other.computed == 1


@pytest.mark.parametrize("damage", ["torn", "changed", "short"])
def test_what_is_damaged_is_computed_anew_with_one_line(model, tmp_path, caplog, damage):
    first = KeptEntropies(loads(1), model, tmp_path / "kept")
    first.of(PROMPT, REPLIES)
    first.write()
    [file] = (tmp_path / "kept").iterdir()
    if damage == "torn":
        file.write_bytes(file.read_bytes()[:-7])
    elif damage == "changed":
        file.write_bytes(save({key: value + 1 for key, value in load_file(file).items()}, {"sha256": "0"}))
    else:
        kept = {key: value[:-1] for key, value in load_file(file).items()}
        file.write_bytes(save(kept, {"sha256": kept_entropies._checksum(kept)}))
    with caplog.at_level(logging.WARNING):
        again = KeptEntropies(loads(1), model, tmp_path / "kept")
    assert len(caplog.records) == (damage != "short")
    torch.testing.assert_close(again.of(PROMPT, REPLIES), expected())
    assert again.computed == 1
    again.write()
    assert KeptEntropies(loads(0), model, tmp_path / "kept").of(PROMPT, REPLIES).shape == (2, 4)


def test_a_place_that_cannot_be_written_is_a_line_and_no_error(model, tmp_path, caplog):
    (tmp_path / "kept").write_text("a file")
    entropies = KeptEntropies(loads(1), model, tmp_path / "kept")
    entropies.of(PROMPT, REPLIES)
    with caplog.at_level(logging.WARNING):
        entropies.write()
    assert "are not kept" in caplog.text
    without = KeptEntropies(loads(1))
    without.of(PROMPT, REPLIES)
    without.write()
