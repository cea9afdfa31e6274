import pytest
import torch

from common.errors import UserError
from common.training.capacity import check_memory, memory_of
from tests.tiny_runs import settings_of


def test_a_table_that_the_machine_cannot_hold_is_named_with_its_options():
    there = memory_of(torch.device("cpu"))
    check_memory({}, torch.device("cpu"))
    check_memory({"a": there // 4, "b": 1}, torch.device("cpu"))
    with pytest.raises(UserError, match=r"^b x c: a table of .* numbers needs .* GiB, and the machine has "):
        check_memory({"a": 1, "b x c": there // 4 + 1}, torch.device("cpu"))


def test_the_tables_of_a_run_of_prompts():
    settings = settings_of(
        num_reinforce_samples=7, prompt_length=3, num_validation_prompts=2, reward_pool_size=50, screening=3
    )
    tables = settings.tables(vocabulary=100, width=10)
    assert tables["num_reinforce_samples x prompt_length"] == 2100
    assert tables["num_validation_prompts x prompt_train_batch_size"] == 1600
    assert tables["reward_pool_size x screening"] == 15000
