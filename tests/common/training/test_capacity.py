import pytest
import torch

from common.errors import UserError
from common.training import capacity
from common.training.capacity import check_memory, memory_of
from tests.tiny_runs import settings_of


def test_a_table_that_the_machine_cannot_hold_is_named_with_its_options():
    there = memory_of(torch.device("cpu"))
    check_memory({}, torch.device("cpu"))
    check_memory({"a": there // 4, "b": 1}, torch.device("cpu"))
    with pytest.raises(UserError, match=r"^b x c: a table of .* numbers needs .* GiB, and the machine has "):
        check_memory({"a": 1, "b x c": there // 4 + 1}, torch.device("cpu"))


@pytest.mark.parametrize(
    ("own", "files", "limit"),
    [
        ("0::/\n", {"memory.max": "5000\n"}, 5000),  # version 2, as a container sees itself
        ("0::/jobs/one\n", {"jobs/one/memory.max": "max\n", "jobs/memory.max": "7000\n"}, 7000),
        ("0::/host/name\n", {"memory.max": "6000\n"}, 6000),  # the host's path, which is not there
        ("4:cpu,memory:/a\n0::/\n", {"memory/a/memory.limit_in_bytes": "4000\n"}, 4000),  # version 1
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("0::/\n", {"memory.max": "max\n"}, None),
        ("0::/\n", {}, None),
        (None, {"memory.max": "5000\n"}, None),  # no Linux
    ],
)
def test_the_memory_of_a_container_is_what_it_is_allowed(tmp_path, monkeypatch, own, files, limit):
    machine = memory_of(torch.device("cpu"))
    groups = tmp_path / "groups"
    if own is not None:
        (tmp_path / "own").write_text(own, encoding="utf-8")
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(capacity, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(capacity, "_GROUPS", groups)
    assert memory_of(torch.device("cpu")) == (limit or machine)


def test_the_tables_of_a_run_of_prompts():
    settings = settings_of(
        num_reinforce_samples=7, prompt_length=3, num_validation_prompts=2, reward_pool_size=50, screening=3
    )
    tables = settings.tables(vocabulary=100, width=10)
    assert tables["num_reinforce_samples x prompt_length"] == 2100
    assert tables["num_validation_prompts x prompt_train_batch_size"] == 1600
    assert tables["reward_pool_size x screening"] == 15000
