"""The shipped models and data: loadable without a network, small, and as hard as models.json says."""

import importlib.util
import json
import random
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoTokenizer

from common.builtin import FOLDER, NAMES, resolve
from common.builtin.report_grammar import write_report
from common.builtin.review_grammar import (
    NEGATIVE_VERDICT,
    POSITIVE_VERDICT,
    closing_effect,
    write_closing,
    write_review,
    write_verdict,
)
from common.errors import UserError

MODELS = {
    "causal-lm": AutoModelForCausalLM, "masked-lm": AutoModelForMaskedLM, "seq2seq": AutoModelForSeq2SeqLM,
    "report-lm": AutoModelForCausalLM,
}  # fmt: skip
VERDICTS = (" terrible", " great")
SPLITS = (100, 13, 21, 42, 87)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((FOLDER / "models.json").read_text())["parts"]


@pytest.fixture(scope="module")
def build_script() -> ModuleType:
    path = FOLDER.parent.parent / "scripts" / "build_builtin_models.py"
    spec = importlib.util.spec_from_file_location("build_builtin_models", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_split(number: int, part: str) -> list[tuple[str, int]]:
    path = Path(resolve("builtin/data")) / "16-shot" / "reviews" / f"16-{number}" / f"{part}.tsv"
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    assert header == "sentence\tlabel"
    rows = [line.split("\t") for line in lines]
    return [(text, int(label)) for text, label in rows]


@pytest.mark.parametrize("name", NAMES)
def test_builtin_names_resolve_to_folders_that_are_there(name: str) -> None:
    assert Path(resolve(f"builtin/{name}")).is_dir()


def test_other_names_are_left_alone() -> None:
    assert resolve("distilgpt2") == "distilgpt2"
    assert resolve("./builtin/causal-lm") == "./builtin/causal-lm"


def test_an_unknown_builtin_name_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"builtin/casual-lm.*builtin/causal-lm.*builtin/masked-lm"):
        resolve("builtin/casual-lm")


@pytest.mark.parametrize("name", MODELS)
def test_models_load_by_from_pretrained_in_single_precision(name: str) -> None:
    model = MODELS[name].from_pretrained(resolve(f"builtin/{name}"))
    tokenizer = AutoTokenizer.from_pretrained(resolve(f"builtin/{name}"))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)


def test_the_models_take_at_most_eight_mebibytes_together() -> None:
    files = [file for name in MODELS for file in Path(resolve(f"builtin/{name}")).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 8 * 2**20


@pytest.mark.parametrize("name", ["causal-lm", "masked-lm"])
def test_verbalizers_are_one_token_each(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve(f"builtin/{name}"))
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in VERDICTS]
    assert [len(tokens) for tokens in ids] == [1, 1]
    assert ids[0] != ids[1]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "text",
    [
        "the plot kept its promise .",
        "  two  blanks ",
        "café 我们 \U0001f600",
        "quote \" ' {brace} \\ $x;",
        "tab\there\x00",
    ],
)
def test_tokenizers_lose_no_character(name: str, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(resolve(f"builtin/{name}"))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids


def test_policy_and_task_lm_do_not_share_a_vocabulary() -> None:
    policy, task = (AutoTokenizer.from_pretrained(resolve(f"builtin/{name}")) for name in ("causal-lm", "masked-lm"))
    assert policy(" overall verdict")["input_ids"] != task(" overall verdict", add_special_tokens=False)["input_ids"]
    assert policy.get_vocab().keys() != task.get_vocab().keys()


def test_the_policy_tokenizer_works_like_gpt2_and_the_masked_one_like_roberta() -> None:
    policy = AutoTokenizer.from_pretrained(resolve("builtin/causal-lm"))
    assert policy.bos_token == policy.eos_token == "<|endoftext|>"
    assert policy("<|endoftext|>")["input_ids"] == [policy.eos_token_id]
    task = AutoTokenizer.from_pretrained(resolve("builtin/masked-lm"))
    ids = task("it was <mask> .")["input_ids"]
    assert ids[0] == task.bos_token_id and ids[-1] == task.eos_token_id
    assert ids == task("it was<mask> .")["input_ids"]
    assert task(" overall")["input_ids"] == [task.bos_token_id, task(" overall")["input_ids"][1], task.eos_token_id]


def test_the_grammars_write_the_same_text_from_the_same_seed() -> None:
    def texts(seed: int) -> list[object]:
        rng = random.Random(seed)
        review = write_review(rng)
        closing = write_closing(rng, ["door", "stage"])
        return [review, closing, write_verdict(rng, review.evidence, closing), write_report(rng)]

    assert texts(5) == texts(5)
    assert texts(5) != texts(6)


def test_reviews_never_state_their_verdict_and_are_of_both_kinds() -> None:
    rng = random.Random(1)
    reviews = [write_review(rng) for _ in range(2000)]
    assert not any({POSITIVE_VERDICT, NEGATIVE_VERDICT} & set(review.text.split()) for review in reviews)
    assert 0.45 < sum(review.label for review in reviews) / len(reviews) < 0.55
    assert all(review.label == int(review.evidence > 0) for review in reviews)


def test_strong_closing_words_make_verdicts_agree_with_the_evidence() -> None:
    def agreement(closing: str) -> float:
        rng = random.Random(2)
        reviews = [write_review(rng) for _ in range(1000)]
        verdicts = [write_verdict(rng, review.evidence, closing) == POSITIVE_VERDICT for review in reviews]
        return sum(verdict == bool(review.label) for verdict, review in zip(verdicts, reviews, strict=True)) / 1000

    closings = ["", " overall", " overall verdict rating", " overall verdict rating overall verdict"]
    shares = [agreement(closing) for closing in closings]
    assert shares == sorted(shares)
    assert shares[0] < 0.7 < 0.9 < shares[-1]
    assert closing_effect(["overall", "verdict"]) == closing_effect(["verdict", "overall"])


def test_a_report_holds_the_facts_of_its_summary_and_a_careless_summary_often_fails_to() -> None:
    rng = random.Random(3)
    reports = [write_report(rng) for _ in range(200)]
    for report in reports:
        assert 30 <= len(report.document.split()) <= 70
        assert 10 <= len(report.summary.split()) <= 22
    faithful = [write_report(random.Random(seed)).summary for seed in range(200)]
    careless = [write_report(random.Random(seed), careless=True).summary for seed in range(200)]
    assert sum(a == b for a, b in zip(faithful, careless, strict=True)) < 20


@pytest.mark.parametrize("number", SPLITS)
def test_few_shot_splits_are_balanced_and_do_not_overlap(number: int) -> None:
    train, dev, test = (read_split(number, part) for part in ("train", "dev", "test"))
    assert Counter(label for _, label in train) == {0: 16, 1: 16}
    assert Counter(label for _, label in dev) == {0: 16, 1: 16}
    assert Counter(label for _, label in test) == {0: 250, 1: 250}
    assert len(set(train + dev + test)) == len(train + dev + test)


def test_splits_differ_in_train_and_share_the_test_set() -> None:
    assert len({tuple(read_split(number, "train")) for number in SPLITS}) == len(SPLITS)
    assert len({tuple(read_split(number, "test")) for number in SPLITS}) == 1


def test_reports_are_rows_of_document_and_summary() -> None:
    folder = Path(resolve("builtin/data")) / "reports"
    documents: list[str] = []
    for part, count in {"train": 400, "validation": 100, "test": 100}.items():
        rows = [json.loads(line) for line in (folder / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert len(rows) == count
        assert all(row.keys() == {"document", "summary"} for row in rows)
        documents += [row["document"] for row in rows]
    assert len(set(documents)) == len(documents)


def test_data_is_what_the_build_script_writes(build_script: ModuleType, record: dict, tmp_path: Path) -> None:
    build_script.build_data(tmp_path, record["data"]["seed"])
    written = sorted(file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file())
    shipped = Path(resolve("builtin/data"))
    assert written == sorted(file.relative_to(shipped) for file in shipped.rglob("*") if file.is_file())
    assert all((tmp_path / file).read_bytes() == (shipped / file).read_bytes() for file in written)


def test_recorded_figures_hold_the_bounds(build_script: ModuleType, record: dict) -> None:
    assert build_script.broken_bounds(record) == []
    masked = record["masked-lm"]
    assert masked["empty_prompt_accuracy"] <= 0.70
    assert masked["best_prompt_accuracy"] >= 0.92
    assert masked["random_prompts"]["accuracy_max"] < masked["best_prompt_accuracy"] - 0.03


def test_a_record_that_breaks_a_bound_is_reported(build_script: ModuleType, record: dict) -> None:
    worse = {**record, "masked-lm": {**record["masked-lm"], "empty_prompt_accuracy": 0.8, "best_prompt_accuracy": 0.9}}
    assert len(build_script.broken_bounds(worse)) == 2
    heavy = {**record, "seq2seq": {**record["seq2seq"], "bytes": 8 * 2**20}}
    assert len(build_script.broken_bounds(heavy)) == 1


@pytest.mark.parametrize("name", ["masked-lm", "causal-lm"])
def test_shipped_weights_classify_as_recorded(build_script: ModuleType, record: dict, name: str) -> None:
    model = MODELS[name].from_pretrained(resolve(f"builtin/{name}")).eval()
    tokenizer = AutoTokenizer.from_pretrained(resolve(f"builtin/{name}"))
    part = read_split(100, "test")[:200]
    reviews = [build_script.Review(text, 1.0 if label else -1.0) for text, label in part]
    prompts = ["", record[name]["best_prompt"]]
    empty, best = build_script.accuracy(build_script.label_probabilities(model, tokenizer, reviews, prompts)).tolist()
    assert empty == pytest.approx(record[name]["empty_prompt_accuracy"], abs=0.08)
    assert best == pytest.approx(record[name]["best_prompt_accuracy"], abs=0.04)


def test_the_best_prompt_is_its_recorded_token_ids(record: dict) -> None:
    policy = AutoTokenizer.from_pretrained(resolve("builtin/causal-lm"))
    assert len(record["masked-lm"]["best_prompt_token_ids"]) == 5
    assert policy.decode(record["masked-lm"]["best_prompt_token_ids"]) == record["masked-lm"]["best_prompt"]


def test_the_summarizer_writes_sentences_but_not_yet_summaries(record: dict) -> None:
    assert 0.2 < record["seq2seq"]["greedy_rouge_l"] < 0.75
