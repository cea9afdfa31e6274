import json
import random

import numpy as np
import pytest
import torch

from common.errors import UserError
from common.training.random_keys import Purpose
from common.training.runtime import (
    Runtime,
    choose_device,
    hardware,
    peak_memory_mib,
    random_state,
    restore_random_state,
    start_runtime,
)


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item(), np.random.standard_normal(), random.gauss(0, 1)


def test_one_seed_sets_every_generator():
    start_runtime(3, "cpu")
    first = draws()
    start_runtime(3, "cpu")
    assert draws() == first
    start_runtime(4, "cpu")
    assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_a_large_seed_does_for_numpy_too():
    start_runtime(2**32 + 5, "cpu")


STREAMS = (Purpose.PROMPT_REWARD_STREAM, Purpose.PROMPT_POLICY_STREAM, Purpose.PROMPT_VALIDATION)


def test_streams_of_a_run_are_independent_and_repeatable():
    def numbers(seed, stream):
        return torch.rand(4, generator=Runtime(torch.device("cpu"), seed).generator(stream)).tolist()

    assert numbers(0, STREAMS[0]) == numbers(0, STREAMS[0])
    assert len({tuple(numbers(seed, stream)) for seed in range(3) for stream in STREAMS}) == 9


def test_a_stream_does_not_depend_on_the_global_generator():
    runtime = start_runtime(0, "cpu")
    first = torch.rand(1, generator=runtime.generator(STREAMS[0]))
    torch.rand(5)
    assert torch.equal(torch.rand(1, generator=runtime.generator(STREAMS[0])), first)


def test_the_random_state_survives_json_and_is_restored():
    start_runtime(0, "cpu")
    random.gauss(0, 1), np.random.standard_normal()  # leave half a pair behind
    tensors, state = random_state()
    expected = draws()
    draws()
    restore_random_state(tensors, json.loads(json.dumps(state)))
    assert draws() == expected


def test_the_state_of_an_apple_gpu_is_kept_and_restored(monkeypatch):
    states = [torch.tensor([1, 2, 3], dtype=torch.uint8)]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: states[-1].clone())
    monkeypatch.setattr(torch.mps, "set_rng_state", states.append)
    tensors, state = random_state()
    states.append(torch.zeros(3, dtype=torch.uint8))
    restore_random_state(tensors, state)
    assert torch.equal(states[-1], states[0])
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    restore_random_state(tensors, state)  # a checkpoint that goes on elsewhere


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_the_best_device_there_is(cuda, mps, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto").type == expected


def test_a_device_that_is_none_or_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("cuda:0").index == 0
    with pytest.raises(UserError, match="'cuda:1' is not available"):
        choose_device("cuda:1")
    with pytest.raises(UserError, match="'gpu' is not a device; allowed: auto, cpu, cuda"):
        choose_device("gpu")
    with pytest.raises(UserError, match="'meta' is not available"):
        choose_device("meta")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="'cuda' is not available"):
        choose_device("cuda")


def test_the_number_of_threads_is_set_where_it_is_given():
    before = torch.get_num_threads()
    try:
        start_runtime(0, "cpu", num_threads=before + 1)
        assert torch.get_num_threads() == before + 1
        start_runtime(0, "cpu")
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_peak_memory_is_that_of_this_process_in_mib():
    before = peak_memory_mib()["cpu"]
    block = np.ones(64 * 2**20 // 8)
    assert block[0] == 1
    assert 20 < before < 100_000
    assert peak_memory_mib(torch.device("cpu"))["cpu"] >= before
    assert "cuda" not in peak_memory_mib(torch.device("cpu"))


def test_hardware_is_one_line():
    assert hardware(torch.device("cpu")).startswith("cpu, ")
