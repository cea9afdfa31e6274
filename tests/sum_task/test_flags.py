"""A walk over all flags: each changes what it should."""

import json
from functools import partial
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from common.cpu import use_kernels
from common.errors import UserError
from common.language_models.attention import _Attention
from common.training import progress
from common.training.tracking import read_metrics
from sum_task import batching, run_sum, search, tokenizing
from sum_task.policy_trainer import PolicyTrainer
from sum_task.run_sum import run
from sum_task.settings import SummarizationSettings
from tests.sum_task.tiny import save_t5, spied, word_tokenizer, write_rows

pytestmark = pytest.mark.usefixtures("without_wordnet")

# Base options under which a flag has something to act on.
SAMPLES = {"reinforce_coeff": 0.5}
LONG_ROUND = {"rew_num_train_epochs": 4, "rew_eval_period": 0.5, "rew_learning_rate": 0.3}

STRICT = {"early_stop_count": 1}

# Flag -> its other value and what else must be set: with it, the weights of the policy differ at the end.
CHANGES_POLICY: dict[str, tuple[Any, dict[str, Any]]] = {
    "max_train_samples": (6, {}),
    "source_prefix": ("flood : ", {}),
    "max_source_length": (8, {}),
    "max_target_length": (3, {}),
    "ignore_pad_token_for_loss": ("false", {}),
    "guidance": ("sequence", {}),
    "credit": ("product", {"rew_head": "likelihood"}),
    "weight_shares": ("batch", {}),
    "expectation_tokens": (2, {"credit": "advantage"}),
    "sequence_score": ("preference", {"guidance": "sequence"}),
    "preference": ("tests.sum_task.tiny:brevity", {"rew_num_train_epochs": 3}),
    "agg_func": ("max", {}),
    "soft_maxmin_temp": (0.5, {"agg_func": "min"}),
    "use_softplus": ("false", {}),
    "rew_head": ("likelihood", {}),
    "head_hidden_size": (4, {}),
    "head_init_gain": (0.5, {}),
    "reward_learning_samples": (4, {}),
    "sampling_top_k": (2, {}),
    "sampling_temperature": (3.0, {}),
    "reward_learning_batch_size": (2, {}),
    "rew_gradient_accumulation_steps": (1, {}),
    "rew_num_train_epochs": (2.0, {}),
    "rew_learning_rate": (1e-3, {}),
    "rew_eval_period": (2.0, LONG_ROUND | STRICT),
    "rew_validation_share": (1.0, LONG_ROUND | STRICT),
    "reward_retrain_period": (2.0, {"rew_num_train_epochs": 2}),
    "reward_retrain_epochs": (0.4, {"rew_num_train_epochs": 2}),
    "lr_decay": (0.1, LONG_ROUND | {"weight_decay_count": 0}),
    "weight_decay_count": (0, LONG_ROUND | {"lr_decay": 0.1}),
    "early_stop_count": (1, LONG_ROUND),
    "per_device_train_batch_size": (3, {}),
    "gradient_accumulation_steps": (1, {}),
    "num_train_epochs": (2, {}),
    "learning_rate": (1e-4, {}),
    "weight_decay": (0.5, {}),
    "exp_in_wmle": ("true", {}),
    "use_q_for_weight": ("true", {}),
    "reset_optim": ("true", {"rew_num_train_epochs": 2}),
    "mle_coeff": (0, SAMPLES),
    "reinforce_coeff": (0.5, {}),
    "reinforce_credit": ("sequence", SAMPLES),
    "reinforce_baseline": ("leave-one-out", SAMPLES),
    "max_entropy_coeff": (0.5, {}),
    "num_reinforce_samples": (3, SAMPLES),
    "gradient_clip": ("false", {"gradient_clip_norm": 1e-3}),
    "gradient_clip_norm": (1e-3, {}),
    "mixed_precision": ("bf16", {}),
    "seed": (1, {}),
}

# Flags that another test of this folder is about, or of this file below.
ELSEWHERE = {
    "dataset_name": "test_data",
    "dataset_config": "test_data",
    "train_file": "test_data",
    "validation_file": "test_data",
    "test_file": "test_run_sum",
    "text_column": "test_data",
    "summary_column": "test_data",
    "preference_column": "test_data",
    "preprocessing_num_workers": "test_tokenizing",
    "separator": "test_text_format",
    "config_name": "test_loading",
    "tokenizer_name": "test_loading",
    "model_type": "test_loading",
    "model_name_or_path": "test_run_sum",
    "rew_model_name_or_path": "test_run_sum",
    "resize_position_embeddings": "test_loading",
    "rew_sampling_batches": "test_ranked_summaries",
    "expid": "here",
    "output_dir": "here",
    "use_slow_tokenizer": "here",
    "overwrite": "here",
    "resume": "test_run_sum",
    "extend": "test_extension",
    "checkpoint_path": "test_extension",
    "checkpoint_minutes": "here",
    "checkpoint_steps": "here",
    "keep_checkpoints": "here",
    "log_every": "here",
    "report_to": "here",
    "quiet": "here",
    "verbose": "here",
    "num_threads": "here",
    "matmul_precision": "here",
    "cpu_kernels": "here",
    "device": "here",
    "rouge_words": "here",
    "bertscore": "here",
    "eval_metrics": "test_evaluate_library",
    "num_beams": "here",
    "min_length": "test_odd_models.py",
    "no_repeat_ngram_size": "test_odd_models.py",
    "length_penalty": "test_odd_models.py",
    "source_language": "test_odd_models.py",
    "target_language": "test_odd_models.py",
    "val_max_target_length": "here",
    "per_device_eval_batch_size": "here",
    "policy_eval_period": "here",
    "pad_to_max_length": "here",
    "overwrite_cache": "here",
    "policy_checkpoint_path": "here",
    "rew_checkpoint_path": "here",
    "max_eval_samples": "here",
    "max_predict_samples": "here",
    "lora_rank": "test_adapters",
    "lora_alpha": "test_adapters",
    "gradient_checkpointing": "here",
}


def test_every_flag_is_walked():
    names = set(SummarizationSettings.kinds())
    assert CHANGES_POLICY.keys() | ELSEWHERE.keys() == names
    assert not CHANGES_POLICY.keys() & ELSEWHERE.keys()


def final_weights(tiny, folder, **changes):
    run(tiny.settings(output_dir=folder, **changes))
    return load_file(folder / "policy" / "model.safetensors")


@pytest.fixture(scope="module")
def known():
    """Weights of base runs, by their options."""
    return {}


@pytest.mark.parametrize("flag", CHANGES_POLICY)
def test_flag_changes_the_policy(tiny, tmp_path, known, flag, monkeypatch):
    monkeypatch.setattr(run_sum, "write_run_report", lambda *_: None)  # charts take most of such a run's time
    value, base = CHANGES_POLICY[flag]
    key = json.dumps(base, sort_keys=True)
    if key not in known:
        known[key] = final_weights(tiny, tmp_path / "base", **base)
    changed = final_weights(tiny, tmp_path / "changed", **(base | {flag: value}))
    assert any(not torch.equal(known[key][name], changed[name]) for name in changed)


@pytest.fixture
def plain_run(tiny, tmp_path, monkeypatch):
    """Runs without guidance, so that only the flags in question matter; returns folder and results."""
    monkeypatch.setattr(run_sum, "write_run_report", lambda *_: None)
    count = iter(range(100))

    def start(**changes):
        folder = tmp_path / f"run{next(count)}"
        options = {"output_dir": folder, "guidance": "none", **changes}
        return folder, run(tiny.settings(**options))

    return start


def test_evaluation_flags(plain_run, monkeypatch):
    shapes = []
    plain = run_sum.evaluate

    def evaluate(policy, *rest, **named):
        note = lambda policy, sources, length, beams: shapes.append((len(sources.ids), length, beams))  # noqa: E731
        with monkeypatch.context() as patch:
            patch.setattr(search, "search_summaries", spied(search.search_summaries, note))
            return plain(policy, *rest, **named)

    monkeypatch.setattr(run_sum, "evaluate", evaluate)
    plain_run(num_train_epochs=0, guidance="none", per_device_eval_batch_size=3, val_max_target_length=5, num_beams=2)
    assert shapes == [(3, 5, 2), (1, 5, 2)]
    _, results = plain_run(max_eval_samples=2, max_predict_samples=3)
    assert (results["validation_rows"], results["test_rows"]) == (2, 3)


def test_policy_eval_period(plain_run):
    folder, _ = plain_run(num_train_epochs=2, policy_eval_period=0.5)
    assert [e["step"] for e in read_metrics(folder / "metrics.jsonl") if e["phase"] == "eval"] == [1, 2, 3, 4]


def test_log_every(plain_run):
    folder, _ = plain_run(num_train_epochs=2, log_every=3)
    assert [e["step"] for e in read_metrics(folder / "metrics.jsonl") if e["phase"] == "policy"] == [3, 4]


def test_checkpoint_flags(plain_run):
    folder, _ = plain_run(num_train_epochs=2, checkpoint_steps=1, keep_checkpoints=3)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [f"step-00000{n}" for n in (2, 3, 4)]
    folder, _ = plain_run(checkpoint_minutes=1e-9, keep_checkpoints=9)
    assert len(list((folder / "checkpoints").iterdir())) == 2
    folder, _ = plain_run(checkpoint_minutes=0)
    assert not (folder / "checkpoints").exists()


def test_rouge_words(plain_run, tmp_path, caplog):
    """References of one word with an accent, of which ASCII words see two halves."""
    file = tmp_path / "accents.jsonl"
    rows = [{"document": "storm hit town", "summary": "élève"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows * 2), encoding="utf-8")
    said = []
    for words in ("ascii", "unicode"):
        plain_run(test_file=file, rouge_words=words, guidance="none")
        said.append("letters other than a-z, such as 'é'" in caplog.text)
        caplog.clear()
    assert said == [True, False]


def test_overwrite(plain_run, tmp_path):
    place = tmp_path / "same"
    plain_run(output_dir=place)
    plain_run(output_dir=place, overwrite="true", seed=5)
    assert yaml.safe_load((place / "config.yaml").read_text())["options"]["seed"] == 5


def test_output_folder_is_named_after_the_run(tiny, monkeypatch):
    place = run_sum.output_folder(tiny.settings(output_dir="null", expid="mine", seed=3))
    assert place.as_posix() == "outputs/sum/train/token-avg-3-mine"


def test_pad_to_max_length(plain_run, monkeypatch):
    shapes = set()
    plain = batching.Collator.__call__

    def collate(self, data, indices):
        batch = plain(self, data, indices)
        shapes.add((batch.sources.tokens.shape[1], batch.targets.tokens.shape[1]))
        return batch

    monkeypatch.setattr(batching.Collator, "__call__", collate)
    plain_run(pad_to_max_length="true")
    assert shapes == {(24, 6)}


def test_overwrite_cache(plain_run, monkeypatch, tmp_path):
    monkeypatch.setattr(tokenizing, "CACHED_ROWS", 2)
    made = []
    monkeypatch.setattr(tokenizing, "_tokenized", spied(tokenizing._tokenized, lambda *_: made.append(1)))
    monkeypatch.setattr(run_sum, "tokenize", partial(run_sum.tokenize, cache=tmp_path / "cache"))
    plain_run()
    plain_run()
    assert len(made) == 3
    plain_run(overwrite_cache="true")
    assert len(made) == 6


def test_runs_start_from_saved_models(tiny, tmp_path):
    first = tmp_path / "first"
    run(tiny.settings(output_dir=first))
    again = tmp_path / "again"
    run(
        tiny.settings(
            output_dir=again,
            policy_checkpoint_path=first / "policy",
            rew_checkpoint_path=first / "reward_model",
            reward_retrain_epochs=0,
            learning_rate=1e-12,
        )
    )
    for part in ("policy", "reward_model"):
        one, other = (load_file(folder / part / "model.safetensors") for folder in (first, again))
        assert all(torch.allclose(one[name], other[name], atol=1e-9) for name in one)
    with pytest.raises(UserError, match="not the reward_model folder"):
        run(tiny.settings(output_dir=tmp_path / "x", rew_checkpoint_path=tiny.t5))


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_memory_and_nothing_else(tiny, tmp_path, monkeypatch, dropout):
    model = save_t5(tmp_path / "model", word_tokenizer(), dropout=dropout)
    options = {"reinforce_coeff": 0.2, "num_train_epochs": 1, "model_name_or_path": model}
    plain = final_weights(tiny, tmp_path / "a", **options)
    kept = []
    step = spied(PolicyTrainer._step, lambda self, _: kept.append(self.policy.lm.is_activation_checkpointing))
    monkeypatch.setattr(PolicyTrainer, "_step", step)
    saving = final_weights(tiny, tmp_path / "b", gradient_checkpointing="true", **options)
    assert set(kept) == {True}
    assert all(torch.allclose(plain[name], saving[name], atol=1e-6) for name in plain)


def test_missing_packages_are_named_before_any_work(tiny, tmp_path, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for options, package in (
        ({"report_to": "tensorboard"}, "tensorboard"),
        ({"bertscore": "true"}, "bert-score"),
        ({"lora_rank": 2}, "peft"),
    ):
        with pytest.raises(UserError, match=package):
            run(tiny.settings(output_dir=tmp_path / "run", **options))
    assert not (tmp_path / "run").exists()


def test_machine_flags(plain_run, tiny, caplog, capsys):
    threads = torch.get_num_threads()
    try:
        _, results = plain_run(num_threads=2, use_slow_tokenizer="true")
    finally:
        torch.set_num_threads(threads)
    assert "2 threads" in results["hardware"]
    assert "use_slow_tokenizer" in caplog.text
    assert "step" not in capsys.readouterr().err
    with pytest.raises(UserError, match="device"):
        plain_run(device="cuda:99")
    with pytest.raises(UserError, match="fp16 needs"):
        plain_run(mixed_precision="fp16")


def test_matrix_products_of_float32(plain_run):
    try:
        plain_run(matmul_precision="medium")
        assert torch.get_float32_matmul_precision() == "medium"
        plain_run()
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_without_cpu_kernels_the_models_are_those_of_transformers_and_learn_alike(tiny, tmp_path, monkeypatch):
    kinds: list[set[str]] = []

    def note(trainer, step):
        kinds.append({type(module).__name__ for module in trainer.policy.lm.modules()})

    step = spied(PolicyTrainer._step, note)
    monkeypatch.setattr(PolicyTrainer, "_step", step)
    calls = []
    monkeypatch.setattr(_Attention, "apply", spied(_Attention.apply, lambda *args: calls.append(1)))
    options = {"reinforce_coeff": 0.2, "num_train_epochs": 1}
    try:
        own = final_weights(tiny, tmp_path / "a", **options)
        assert "CheapNorm" in kinds[-1] and calls
        calls.clear()
        plain = final_weights(tiny, tmp_path / "b", cpu_kernels="false", **options)
    finally:
        use_kernels(True)
    assert not kinds[-1] & {"CheapNorm", "CheapDropout", "ReLUDropout"} and not calls
    assert all(torch.allclose(own[name], plain[name], atol=1e-5) for name in own)
    losses = [[event.get("policy/loss") for event in read_metrics(tmp_path / name / "metrics.jsonl")] for name in "ab"]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_rows_left_out_are_counted(plain_run, tmp_path):
    path = write_rows(tmp_path / "train.jsonl", 6, 3)
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"document": "the storm", "summary": " "}) + "\n")
    _, results = plain_run(train_file=path)
    assert results["rows_left_out"]["train"] == 1


def test_verbose(plain_run, caplog):
    try:
        plain_run(verbose="false")
        assert not caplog.text
        plain_run(verbose="true", quiet="false", checkpoint_steps=1)
    finally:
        progress.set_verbose(False)
    for part in ("device cpu", "12 train", "policy: ", "validation score", "checkpoint after 1 optimizer steps"):
        assert part in caplog.text
