"""What the command says of a model, for each role."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf

from common.errors import UserError
from scripts.check_model import main
from tests.sum_task.tiny import word_tokenizer


def test_builtin_models_in_their_roles(capsys):
    assert main(["builtin/seq2seq"]) == 0
    said = capsys.readouterr().out
    assert "builtin/seq2seq as policy: works" in said
    assert "encoder-decoder" in said and "decoder starts with" in said
    assert main(["builtin/masked-lm", "--as", "task_lm"]) == 0
    assert "mask token" in capsys.readouterr().out
    assert main(["builtin/causal-lm", "--as", "reward_model"]) == 0
    with pytest.raises(UserError, match=r"is masked; a policy must be decoder-only or encoder-decoder"):
        main(["builtin/masked-lm"])
    with pytest.raises(UserError, match="cannot load"):
        main(["no/such"])


def test_another_memory_is_told_with_what_is_done(tmp_path, capsys):
    torch.manual_seed(0)
    config = hf.RwkvConfig(vocab_size=60, hidden_size=16, num_hidden_layers=2, attention_hidden_size=16)
    hf.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    main([str(tmp_path)])
    lines = dict(line.strip().split("  ", 1) for line in capsys.readouterr().out.splitlines()[1:])
    assert "no " in lines["cache by rows"] and "anew" in lines["cache by rows"]
    assert "no " in lines["ignores padding"]
    assert lines["vocabulary"].split()[0] == str(len(word_tokenizer()))


def test_a_task_lm_is_asked_by_its_own_functions_and_a_backbone_needs_no_head(tmp_path, capsys):
    main(["builtin/masked-lm", "--as", "task_lm"])
    said = capsys.readouterr().out
    assert "' great' = Ġgreat" in said and "one column a class" in said
    with pytest.raises(UserError, match=r"the verbalizer ' zzyzx' is not one token"):
        main(["builtin/masked-lm", "--as", "task_lm", "--verbalizers", " great", " zzyzx"])
    config = hf.T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    hf.T5Model(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    assert main([str(tmp_path), "--as", "reward_model"]) == 0
    with pytest.raises(UserError, match="is encoder-decoder; a task LM must be"):
        main([str(tmp_path), "--as", "task_lm"])


def test_an_error_is_one_line_and_exit_code_2():
    done = subprocess.run(
        [sys.executable, "scripts/check_model.py", "builtin/masked-lm"], cwd=Path(__file__).parents[2],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": "."},
    )  # fmt: skip
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: 'builtin/masked-lm' (roberta) is masked; a policy must be decoder-only or encoder-decoder\n"
    )
