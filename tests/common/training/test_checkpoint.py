import copy
import json

import pytest
import torch
from torch import nn

from common.errors import UserError
from common.training.checkpoint import (
    StateTree,
    checkpoint_folders,
    latest_checkpoint,
    load_checkpoint,
    load_optimizer_state,
    optimizer_state,
    save_checkpoint,
)


def state_of(value=1.0):
    state = StateTree()
    state.put("policy/weights", {"a.weight": torch.full((2, 3), value), "step": torch.tensor(3)})
    state.put("policy", {}, {"steps_done": 3, "best": -1.5, "none": None, "texts": ['"é\n', ""]})
    state.put("bytes", {"generator": torch.Generator().manual_seed(0).get_state()})
    return state


def test_what_is_saved_is_loaded(tmp_path):
    save_checkpoint(tmp_path / "checkpoints" / "step-000003", state_of())
    state = load_checkpoint(tmp_path / "checkpoints" / "step-000003")
    tensors, values = state.get("policy/weights")
    assert values is None
    assert torch.equal(tensors["a.weight"], torch.ones(2, 3))
    assert tensors["step"].item() == 3
    assert state.get("policy") == (tensors_under(state, "policy/"), state_of().values["policy"])
    assert torch.equal(state.get("bytes")[0]["generator"], torch.Generator().manual_seed(0).get_state())


def tensors_under(state, prefix):
    return {name.removeprefix(prefix): value for name, value in state.tensors.items() if name.startswith(prefix)}


def test_a_checkpoint_is_safetensors_and_json(tmp_path):
    save_checkpoint(tmp_path / "step-1", state_of())
    assert sorted(path.name for path in (tmp_path / "step-1").iterdir()) == ["state.json", "state.safetensors"]
    assert json.loads((tmp_path / "step-1" / "state.json").read_text())["values"]["policy"]["steps_done"] == 3


def test_tensors_that_share_memory_are_saved_each_for_itself(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    state = StateTree()
    state.put("tied", {"a": weight, "b": weight, "transposed": weight.T, "wide": weight[:, :1].expand(2, 4)})
    save_checkpoint(tmp_path / "step-1", state)
    tensors = load_checkpoint(tmp_path / "step-1").get("tied")[0]
    assert torch.equal(tensors["b"], weight)
    assert torch.equal(tensors["transposed"], weight.T)
    assert torch.equal(tensors["wide"], weight[:, :1].expand(2, 4))


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    save_checkpoint(tmp_path / "step-1", state_of(1.0))
    save_checkpoint(tmp_path / "step-1", state_of(2.0))
    assert load_checkpoint(tmp_path / "step-1").get("policy/weights")[0]["a.weight"][0, 0] == 2


def test_a_kill_while_saving_leaves_the_earlier_checkpoints(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "step-1", state_of())

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("common.training.checkpoint.json.dumps", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "step-2", state_of())
    assert latest_checkpoint(tmp_path) == tmp_path / "step-1"
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


@pytest.mark.parametrize(
    "damage", ["no folder", "no json", "torn json", "torn tensors", "no tensors", "foreign", "other"]
)
def test_a_checkpoint_that_cannot_be_used_is_an_error_that_names_it(damage, tmp_path):
    folder = tmp_path / "step-1"
    save_checkpoint(folder, state_of())
    texts, tensors = folder / "state.json", folder / "state.safetensors"
    if damage == "no folder":
        folder = tmp_path / "nowhere"
    elif damage == "no json":
        texts.unlink()
    elif damage == "torn json":
        texts.write_text(texts.read_text()[:20])
    elif damage == "torn tensors":
        tensors.write_bytes(tensors.read_bytes()[:-10])
    elif damage == "no tensors":
        tensors.unlink()
    elif damage == "foreign":
        texts.write_text('["not", "ours"]')
    else:  # the tensors of another state
        other = StateTree()
        other.put("x", {"y": torch.zeros(1)})
        save_checkpoint(tmp_path / "other", other)
        tensors.write_bytes((tmp_path / "other" / "state.safetensors").read_bytes())
    with pytest.raises(UserError, match=folder.name):
        load_checkpoint(folder)


def test_the_newest_checkpoint_is_that_of_the_highest_step(tmp_path):
    for step in ("step-000900", "step-1000000", "step-000010"):
        save_checkpoint(tmp_path / step, state_of())
    (tmp_path / "step-2000000").mkdir()  # nothing in it
    (tmp_path / "step-x").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "step-1000000"
    assert [path.name for path in checkpoint_folders(tmp_path)] == ["step-000010", "step-000900", "step-1000000"]
    assert latest_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_an_optimizer_goes_on_as_if_it_had_never_stopped(kind, tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = kind(model.parameters(), lr=0.1)

    def step(model, optimizer, x):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()

    inputs = torch.randn(6, 4, 3)
    for x in inputs[:3]:
        step(model, optimizer, x)
    optimizer.param_groups[0]["lr"] = 0.05
    state = StateTree()
    state.put("optimizer", *optimizer_state(optimizer))
    save_checkpoint(tmp_path / "step-3", state)
    twin = copy.deepcopy(model)
    other = kind(twin.parameters(), lr=0.1)
    load_optimizer_state(other, *load_checkpoint(tmp_path / "step-3").get("optimizer"))
    assert other.param_groups[0]["lr"] == 0.05
    for x in inputs[3:]:
        step(model, optimizer, x)
        step(twin, other, x)
    assert torch.equal(model.weight, twin.weight)


def test_an_optimizer_that_has_not_stepped_has_a_state_too():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], lr=0.5)
    optimizer.param_groups[0]["lr"] = 0.3
    other = torch.optim.Adam([parameter], lr=0.5)
    load_optimizer_state(other, *optimizer_state(optimizer))
    assert other.param_groups[0]["lr"] == 0.3
    assert not other.state


def test_another_rate_is_lowered_as_far_as_the_first_one_was():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([parameter], lr=0.5)
    optimizer.param_groups[0]["lr"] = 0.25
    other = torch.optim.Adam([parameter], lr=0.1)
    load_optimizer_state(other, *optimizer_state(optimizer))
    assert other.param_groups[0]["lr"] == pytest.approx(0.05)
