"""Build the tiny models and data sets in common/builtin from the grammars that stand beside them.

    python scripts/build_builtin_models.py                          # everything, into common/builtin
    python scripts/build_builtin_models.py --output /some/folder    # elsewhere
    python scripts/build_builtin_models.py --only masked-lm data    # some parts only

Each part is trained in a process of its own on one core, so the same seed gives the same weights on machines of the
same type. The figures of each part are printed and written to models.json. Where a bound is broken, nothing is
written and the command ends with exit code 1.
"""

from common.training.program import run_command

import dataclasses
import json
import math
import multiprocessing
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from common.builtin.planted_errors import KnownErrors, write_reply, write_told
from common.builtin.report_grammar import write_report
from common.builtin.review_grammar import (
    CLOSING_WORDS,
    NEGATIVE_VERDICT,
    POSITIVE_VERDICT,
    Review,
    write_closing,
    write_review,
    write_verdict,
)
from common.training.console import Parser
from common.training.files import write_folder_atomic, write_json_atomic, write_jsonl_atomic, write_text_atomic

PARTS = ("masked-lm", "causal-lm", "seq2seq", "report-lm", "data")
SPLITS = (100, 13, 21, 42, 87)
SHOTS = 16
TEST_REVIEWS = 500
REPORT_ROWS = {"train": 400, "validation": 100, "test": 100}
SUMMARY_PREFIX = "summarize:"
RESTORE_PREFIX = "restore:"
REPLY_PREFIXES = {1: SUMMARY_PREFIX, 4: "summarize at length:"}  # by the number of sentences that are asked for

MAX_BYTES = 8 * 2**20
MAX_EMPTY_PROMPT_ACCURACY = 0.70
MIN_BEST_PROMPT_ACCURACY = 0.92

VERDICTS = (NEGATIVE_VERDICT, POSITIVE_VERDICT)
WIDTH = 128
INITIAL_SCALE = 0.08
MASKED_TEXTS = 360_000
CAUSAL_TEXTS = 240_000
SEQ2SEQ_TEXTS = 80_000
REPORT_LM_WIDTH = 64
REPORT_LM_TEXTS = 48_000
BATCH_SIZE = 128
RANDOM_PROMPTS = 1000
PROMPT_LENGTH = 5


def review_words(seed: int) -> tuple[list[str], list[str]]:
    """Words of reviews and closings, and those that a text can start with."""
    rng = random.Random(seed)
    reviews = [write_review(rng).text.split() for _ in range(20_000)]
    words = {word for review in reviews for word in review} | {*CLOSING_WORDS, POSITIVE_VERDICT, NEGATIVE_VERDICT}
    return sorted(words), sorted({review[0] for review in reviews})


def report_words(seed: int) -> tuple[list[str], list[str]]:
    """Words of reports and summaries, and those that a text can start with."""
    rng = random.Random(seed)
    reports = [write_report(rng) for _ in range(20_000)]
    words = {word for report in reports for word in f"{report.document} {report.summary} _".split()}
    starts = {report.document.split()[0] for report in reports} | {report.summary.split()[0] for report in reports}
    return sorted(words), sorted(starts | {SUMMARY_PREFIX[:-1], RESTORE_PREFIX[:-1], "_"})


def closed_review(rng: random.Random, words: list[str], reliable: bool, without_review: float = 0.0) -> str:
    """A review, what closes it, and the verdict; with probability `without_review` the review itself is missing."""
    review = write_review(rng)
    closing = write_closing(rng, words, reliable)
    verdict = write_verdict(rng, review.evidence, closing)
    opening = "" if rng.random() < without_review else review.text
    return f"{opening}{closing} {verdict} ."


def write_reviews(seed: int, count: int, words: list[str], without_review: float = 0.0) -> list[str]:
    """`count` texts. The first fifth has reliable closings only: sentiment is learned there, closings afterwards."""
    rng = random.Random(seed)
    return [
        closed_review(rng, words, index < count // 5 or rng.random() < 0.15, without_review) for index in range(count)
    ]


def balanced_reviews(rng: random.Random, count_per_class: int, taken: set[str]) -> list[Review]:
    """As many annoyed as pleased reviews in random order; their texts differ, are new to `taken` and join it."""
    chosen: dict[int, list[Review]] = {0: [], 1: []}
    while min(map(len, chosen.values())) < count_per_class:
        review = write_review(rng)
        if len(chosen[review.label]) < count_per_class and review.text not in taken:
            chosen[review.label].append(review)
            taken.add(review.text)
    reviews = chosen[0] + chosen[1]
    rng.shuffle(reviews)
    return reviews


def few_shot_reviews(seed: int) -> dict[int, dict[str, list[Review]]]:
    """Train, dev and test of each published split number; one test set serves all of them."""
    tested: set[str] = set()
    test = balanced_reviews(random.Random(f"{seed} test"), TEST_REVIEWS // 2, tested)
    splits = {}
    for number in SPLITS:
        rng = random.Random(f"{seed} {number}")
        taken = set(tested)
        splits[number] = {part: balanced_reviews(rng, SHOTS, taken) for part in ("train", "dev")} | {"test": test}
    return splits


def build_data(folder: Path, seed: int) -> dict[str, Any]:
    """Write the few-shot reviews (published layout, tab-separated) and the reports (JSON lines)."""
    for number, splits in few_shot_reviews(seed).items():
        place = folder / "16-shot" / "reviews" / f"16-{number}"
        place.mkdir(parents=True)
        for part, reviews in splits.items():
            rows = "".join(f"{review.text}\t{review.label}\n" for review in reviews)
            write_text_atomic(place / f"{part}.tsv", f"sentence\tlabel\n{rows}")
    (folder / "reports").mkdir()
    for part, count in REPORT_ROWS.items():
        rng = random.Random(f"{seed} reports {part}")
        reports = [write_report(rng) for _ in range(count)]
        write_jsonl_atomic(folder / "reports" / f"{part}.jsonl", map(dataclasses.asdict, reports))
    (folder / "noisy-reports").mkdir()
    files = ["--input", str(folder / "reports/train.jsonl"), "--output", str(folder / "noisy-reports/train.jsonl")]
    script = str(Path(__file__).with_name("make_noisy_references.py"))
    subprocess.run([sys.executable, script, *files], check=True, stdout=subprocess.DEVNULL)
    return {"test_reviews": TEST_REVIEWS, "report_rows": REPORT_ROWS}


def word_tokenizer(words: Sequence[str], starts: Sequence[str], special: Sequence[str], merges: int = 0) -> Tokenizer:
    """Byte-level BPE in which each of `words` after a blank, and each of `starts` without one, is one token.

    Every other text falls into its bytes, or into pieces by `merges` learned merges; no character is lost.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = byte_level
    alphabet = sorted(byte_level.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + merges, initial_alphabet=alphabet, show_progress=False, special_tokens=list(special)
    )
    learner.train_from_iterator([f" {word}" for word in words] if merges else [], trainer)
    learned = json.loads(learner.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].get)
    ordered = dict.fromkeys([*special, *pieces, *(f"Ġ{word}" for word in words), *starts])
    vocabulary = {token: index for index, token in enumerate(ordered)}
    pairs = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=True))
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def causal_tokenizer(words: Sequence[str], starts: Sequence[str]) -> PreTrainedTokenizerFast:
    """GPT-2's kind: ``<|endoftext|>`` begins and ends a text, but is not added; there is no padding token."""
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(words, starts, [end]),
        bos_token=end,
        eos_token=end,
        unk_token=end,
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def masked_tokenizer(words: Sequence[str], starts: Sequence[str]) -> PreTrainedTokenizerFast:
    """RoBERTa's kind: ``<s>`` and ``</s>`` are put around a text, and ``<mask>`` takes the blank before it."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer = word_tokenizer(words, starts, special, merges=128)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def seq2seq_tokenizer(words: Sequence[str], starts: Sequence[str]) -> PreTrainedTokenizerFast:
    """T5's kind: ``</s>`` is put after a text, and ``<pad>`` starts the decoder."""
    tokenizer = word_tokenizer(words, starts, ["<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def length_batches(lengths: Sequence[int], size: int, rng: random.Random) -> Iterator[list[int]]:
    """Indices in batches of texts of about the same length; the order is random within stretches of the list."""
    stretch = 50 * size
    for start in range(0, len(lengths), stretch):
        indices = list(range(start, min(start + stretch, len(lengths))))
        rng.shuffle(indices)
        indices.sort(key=lambda index: lengths[index])
        batches = [indices[begin : begin + size] for begin in range(0, len(indices), size)]
        rng.shuffle(batches)
        yield from batches


def stack(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    """(N, T) token ids, padded on the right."""
    longest = max(map(len, rows))
    return torch.stack([pad(torch.tensor(row), (0, longest - len(row)), value=padding) for row in rows])


def optimise(
    name: str, model: PreTrainedModel, batches: Sequence[Any], loss_of: Callable[[Any], Tensor], learning_rate: float
) -> None:
    """One pass over `batches` with AdamW, warm-up, cosine decay and gradient clipping; prints progress lines."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    total = len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 200) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / total)))
    )
    model.train()
    began = time.monotonic()
    recent = 0.0
    for step, batch in enumerate(batches, 1):
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent += loss.item()
        if step % 200 == 0 or step == total:
            count = (step - 1) % 200 + 1
            seconds = time.monotonic() - began
            left = seconds / step * (total - step)
            print(
                f"{name}: step {step}/{total} loss {recent / count:.3f} {seconds:.0f} s, {left:.0f} s left", flush=True
            )
            recent = 0.0
    model.eval()


def verdict_ids(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Token ids of the verdict words by label, (2,)."""
    return torch.tensor([tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in VERDICTS]).squeeze(1)


def train_masked_lm(tokenizer: PreTrainedTokenizerFast, words: list[str], seed: int) -> RobertaForMaskedLM:
    """Mask the verdict nearly always and other tokens rarely; the verdict weighs most."""
    model = RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=4 * WIDTH,
            max_position_embeddings=258,
            type_vocab_size=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=INITIAL_SCALE,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    rows = tokenizer(write_reviews(seed, MASKED_TEXTS, words))["input_ids"]
    verdicts = verdict_ids(tokenizer)
    chance = torch.Generator().manual_seed(seed)

    def loss_of(indices: list[int]) -> Tensor:
        ids = stack([rows[index] for index in indices], tokenizer.pad_token_id)
        attended = ids != tokenizer.pad_token_id
        is_verdict = torch.isin(ids, verdicts)
        is_text = ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
        draw = torch.rand(ids.shape, generator=chance)
        masked = (is_verdict & (draw < 0.95)) | (is_text & (draw < 0.05))
        hidden = model.roberta(
            input_ids=ids.masked_fill(masked, tokenizer.mask_token_id), attention_mask=attended
        ).last_hidden_state
        loss = cross_entropy(model.lm_head(hidden[masked]), ids[masked], reduction="none")
        return weigh_verdicts(loss, is_verdict[masked])

    batches = list(length_batches([len(row) for row in rows], BATCH_SIZE, random.Random(seed)))
    optimise("masked-lm", model, batches, loss_of, learning_rate=1.5e-3)
    return model


def weigh_verdicts(loss: Tensor, is_verdict: Tensor) -> Tensor:
    """Mean loss of verdict tokens plus 0.3 of the mean loss of the others; (N,), (N,) -> ()."""
    return loss[is_verdict].mean() + 0.3 * loss[~is_verdict].mean()


def small_gpt2(tokenizer: PreTrainedTokenizerFast, width: int, start: int, **more: Any) -> GPT2LMHeadModel:
    """Two layers without dropout."""
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=width,
            n_layer=2,
            n_head=4,
            n_positions=256,
            embd_pdrop=0.0,
            resid_pdrop=0.0,
            attn_pdrop=0.0,
            initializer_range=INITIAL_SCALE,
            bos_token_id=start,
            eos_token_id=tokenizer.eos_token_id,
            **more,
        )
    )


def train_causal_lm(tokenizer: PreTrainedTokenizerFast, words: list[str], seed: int) -> GPT2LMHeadModel:
    """Ordinary left-to-right training in which the verdict weighs most."""
    model = small_gpt2(tokenizer, WIDTH, tokenizer.bos_token_id)
    end = tokenizer.eos_token_id
    texts = write_reviews(seed + 1, CAUSAL_TEXTS, words, without_review=0.1)
    rows = [[end, *row, end] for row in tokenizer(texts)["input_ids"]]
    verdicts = verdict_ids(tokenizer)

    def loss_of(indices: list[int]) -> Tensor:
        batch = [rows[index] for index in indices]
        ids = stack(batch, end)
        real = torch.arange(ids.shape[1] - 1) < torch.tensor([len(row) - 1 for row in batch])[:, None]
        logits = model(input_ids=ids[:, :-1]).logits
        target = ids[:, 1:][real]
        loss = cross_entropy(logits[real], target, reduction="none")
        return weigh_verdicts(loss, torch.isin(target, verdicts))

    batches = list(length_batches([len(row) for row in rows], BATCH_SIZE, random.Random(seed)))
    optimise("causal-lm", model, batches, loss_of, learning_rate=1.5e-3)
    return model


def train_seq2seq(tokenizer: PreTrainedTokenizerFast, seed: int) -> T5ForConditionalGeneration:
    """Restore sentences of reports from which words are missing, and imitate careless summaries."""
    model = T5ForConditionalGeneration(
        T5Config(  # type: ignore[call-arg]
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=32,
            d_ff=2 * WIDTH,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
    )
    rng = random.Random(seed + 2)
    sources, targets = zip(*(reading_task(rng) for _ in range(SEQ2SEQ_TEXTS)), strict=True)
    source_rows, target_rows = tokenizer(list(sources))["input_ids"], tokenizer(list(targets))["input_ids"]

    def loss_of(indices: list[int]) -> Tensor:
        ids = stack([source_rows[index] for index in indices], tokenizer.pad_token_id)
        labels = stack([target_rows[index] for index in indices], -100)
        return model(input_ids=ids, attention_mask=ids != tokenizer.pad_token_id, labels=labels).loss

    batches = list(length_batches([len(row) for row in source_rows], 64, random.Random(seed)))
    optimise("seq2seq", model, batches, loss_of, learning_rate=3e-3)
    return model


def train_report_lm(tokenizer: PreTrainedTokenizerFast, seed: int) -> GPT2LMHeadModel:
    """Write what careless writers say about reports, in one sentence or in four; the report itself weighs little."""
    model = small_gpt2(tokenizer, REPORT_LM_WIDTH, tokenizer.pad_token_id, pad_token_id=tokenizer.pad_token_id)
    rng = random.Random(seed + 3)
    prompts, rows = [], []
    for _ in range(REPORT_LM_TEXTS):
        sentences, told = rng.choice(list(REPLY_PREFIXES)), write_told(rng)
        prompts.append(tokenizer(f"{REPLY_PREFIXES[sentences]} {told.document}")["input_ids"])
        rows.append([*prompts[-1], *tokenizer(write_reply(rng, told, sentences).text)["input_ids"]])

    def loss_of(indices: list[int]) -> Tensor:
        ids = stack([rows[index] for index in indices], tokenizer.pad_token_id)
        target = ids[:, 1:]
        loss = cross_entropy(model(input_ids=ids[:, :-1]).logits.transpose(1, 2), target, reduction="none")
        places = torch.arange(1, ids.shape[1])
        in_reply = places >= torch.tensor([len(prompts[index]) for index in indices])[:, None]
        real = places < torch.tensor([len(rows[index]) for index in indices])[:, None]
        return loss[in_reply & real].mean() + 0.1 * loss[~in_reply].mean()

    batches = list(length_batches([len(row) for row in rows], 32, random.Random(seed)))
    optimise("report-lm", model, batches, loss_of, learning_rate=3e-3)
    return model


def reading_task(rng: random.Random) -> tuple[str, str]:
    """Source and target of one training text of the encoder-decoder."""
    if rng.random() < 0.5:
        report = write_report(rng, careless=True)
        return f"{SUMMARY_PREFIX} {report.document}", report.summary
    sentences = [f"{sentence}." for sentence in write_report(rng).document.split(".")[:-1]]
    start = rng.randrange(len(sentences) - 1)
    target = "".join(sentences[start : start + 2]).strip()
    words = target.split()
    for index in rng.sample(range(len(words)), len(words) // 4):
        words[index] = "_"
    return f"{RESTORE_PREFIX} {' '.join(words)} {''.join(sentences).strip()}", target


@torch.no_grad()
def label_probabilities(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, reviews: Sequence[Review], prompts: Sequence[str]
) -> Tensor:
    """Probability of the true label of each review under each prompt, between the two verdict words, (P, N)."""
    masked = tokenizer.mask_token is not None
    ending = f" {tokenizer.mask_token} ." if masked else ""
    rows = tokenizer([f"{review.text} {prompt}{ending}" for prompt in prompts for review in reviews])["input_ids"]
    verdicts = verdict_ids(tokenizer)
    padding = tokenizer.pad_token_id if masked else tokenizer.eos_token_id
    positive = torch.empty(len(rows))
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    for start in range(0, len(order), 256):
        indices = order[start : start + 256]
        batch = [rows[index] for index in indices]
        lengths = torch.tensor([len(row) for row in batch])
        ids = stack(batch, padding)
        attended = torch.arange(ids.shape[1]) < lengths[:, None]
        hidden = model.base_model(input_ids=ids, attention_mask=attended.long()).last_hidden_state
        if masked:
            logits = model.lm_head(hidden[ids == tokenizer.mask_token_id])[:, verdicts]
        else:
            logits = model.lm_head(hidden[torch.arange(len(batch)), lengths - 1])[:, verdicts]
        positive[indices] = torch.softmax(logits, dim=-1)[:, 1]
    labels = torch.tensor([review.label for review in reviews])
    positive = positive.view(len(prompts), len(reviews))
    return torch.where(labels == 1, positive, 1 - positive)


def accuracy(probabilities: Tensor) -> Tensor:
    """Share of reviews of which the true label is more likely than the other; (P, N) -> (P,)."""
    return (probabilities > 0.5).float().mean(dim=1)


def preference(probabilities: Tensor) -> Tensor:
    """Mean gap between the two classes, 200 times where it is right and 180 times where it is wrong; (P, N) -> (P,)."""
    gap = 2 * probabilities - 1
    return torch.where(gap > 0, 200 * gap, 180 * gap).mean(dim=1)


def prompt_figures(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    policy_tokenizer: PreTrainedTokenizerFast,
    seed: int,
) -> dict[str, Any]:
    """Test accuracy of the empty prompt, of random prompts, and of the best prompt that a search finds.

    The search sees reviews of its own: it ranks the tokens by the prompt that repeats each five times, then improves
    one position at a time.
    """
    splits = few_shot_reviews(seed)
    test, train = splits[SPLITS[0]]["test"], splits[SPLITS[0]]["train"]
    rng = random.Random(seed + 3)
    part = [review for label in (0, 1) for review in [review for review in test if review.label == label][:50]]
    search = balanced_reviews(rng, 64, {review.text for review in test})

    def text(tokens: list[int]) -> str:
        return str(policy_tokenizer.decode(tokens))

    def probabilities(reviews: Sequence[Review], prompts: Sequence[str]) -> Tensor:
        return label_probabilities(model, tokenizer, reviews, prompts)

    vocabulary = [index for index in range(len(policy_tokenizer)) if index not in policy_tokenizer.all_special_ids]
    prompts = [text(rng.choices(vocabulary, k=PROMPT_LENGTH)) for _ in range(RANDOM_PROMPTS)]
    random_accuracy = accuracy(probabilities(part, prompts))
    likeliest = [prompts[index] for index in random_accuracy.topk(20).indices]
    chosen = [prompts[index] for index in preference(probabilities(train, prompts)).topk(3).indices]

    repeated = [text([token] * PROMPT_LENGTH) for token in vocabulary]
    ranking = preference(probabilities(search[:48], repeated)).topk(16).indices
    candidates = [vocabulary[index] for index in ranking]
    best = [candidates[0]] * PROMPT_LENGTH
    for position in [*range(PROMPT_LENGTH)] * 2:
        variants = [[*best[:position], token, *best[position + 1 :]] for token in candidates]
        best = variants[int(preference(probabilities(search, [text(tokens) for tokens in variants])).argmax())]
    figures = {
        "empty_prompt_accuracy": accuracy(probabilities(test, [""])).item(),
        "random_prompts": {
            "count": RANDOM_PROMPTS,
            "accuracy_mean": random_accuracy.mean().item(),
            "accuracy_std": random_accuracy.std().item(),
            "accuracy_quantiles_5_50_95_99": torch.quantile(
                random_accuracy, torch.tensor([0.05, 0.5, 0.95, 0.99])
            ).tolist(),
            "accuracy_max": accuracy(probabilities(test, likeliest)).max().item(),
            "accuracy_of_top_3_by_train_score": accuracy(probabilities(test, chosen)).mean().item(),
        },
        "best_prompt": text(best),
        "best_prompt_token_ids": best,
        "best_prompt_accuracy": accuracy(probabilities(test, [text(best)])).item(),
    }
    print(f"{name}: {json.dumps(figures)}", flush=True)
    return rounded(figures)


def rounded(value: Any) -> Any:
    """`value` with every float in it rounded to four places."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


@torch.no_grad()
def summary_figures(model: T5ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, seed: int) -> dict[str, Any]:
    """ROUGE-L (F1 over words) of greedy summaries of the test reports."""
    rng = random.Random(f"{seed} reports test")
    reports = [write_report(rng) for _ in range(REPORT_ROWS["test"])]
    batch = tokenizer([f"{SUMMARY_PREFIX} {report.document}" for report in reports], padding=True, return_tensors="pt")
    generated: Any = model.generate(**batch, max_new_tokens=40, do_sample=False)  # type: ignore[misc]
    written = tokenizer.batch_decode(generated, skip_special_tokens=True)
    scores = [rouge_l(text.split(), report.summary.split()) for text, report in zip(written, reports, strict=True)]
    return rounded({"greedy_rouge_l": sum(scores) / len(scores), "example": written[0]})


@torch.no_grad()
def reply_figures(model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, seed: int) -> dict[str, Any]:
    """True scores (see `KnownErrors`) of sampled replies to new reports, by the number of sentences asked for."""
    rng = random.Random(f"{seed} reports test")
    reports = [write_told(rng) for _ in range(REPORT_ROWS["test"])]
    figures: dict[str, Any] = {}
    for sentences, prefix in REPLY_PREFIXES.items():
        known = KnownErrors(reports, sentences)
        prompts = [f"{prefix} {report.document}" for report in reports]
        batch = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
        whole: Any = model.generate(**batch, max_new_tokens=96, do_sample=True, top_k=0)  # type: ignore[misc]
        written = tokenizer.batch_decode(whole[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        scores = [known.score(prompt, text) for prompt, text in zip(prompts, written, strict=True)]
        figures |= {f"sampled_score_{sentences}": sum(scores) / len(scores), f"example_{sentences}": written[0]}
    return rounded(figures)


def rouge_l(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of the longest common subsequence of two word lists."""
    lengths = [0] * (len(reference) + 1)
    for word in prediction:
        diagonal = 0
        for index, other in enumerate(reference, 1):
            above = lengths[index]
            lengths[index] = diagonal + 1 if word == other else max(above, lengths[index - 1])
            diagonal = above
    return 2 * lengths[-1] / (len(prediction) + len(reference)) if prediction else 0.0


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def build_part(part: str, output: str, seed: int) -> dict[str, Any]:
    """Build one part into the folder of its name in `output`; returns its figures."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    began = time.monotonic()
    folder = Path(output) / part
    folder.mkdir()
    words, starts = review_words(seed)
    figures = build_data(folder, seed) if part == "data" else build_model(part, folder, words, starts, seed)
    return {
        "seed": seed,
        **figures,
        "bytes": folder_bytes(folder),
        "build_seconds": round(time.monotonic() - began, 1),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }


def build_model(part: str, folder: Path, words: list[str], starts: list[str], seed: int) -> dict[str, Any]:
    """Train and save one model with its tokenizer; returns its figures."""
    policy_tokenizer = causal_tokenizer(words, starts)
    model: PreTrainedModel
    if part == "masked-lm":
        tokenizer = masked_tokenizer(words, starts)
        model = train_masked_lm(tokenizer, words, seed)
        figures = prompt_figures(part, model, tokenizer, policy_tokenizer, seed)
    elif part == "causal-lm":
        tokenizer = policy_tokenizer
        model = train_causal_lm(tokenizer, words, seed)
        figures = prompt_figures(part, model, tokenizer, policy_tokenizer, seed)
    elif part == "report-lm":
        tokenizer = seq2seq_tokenizer(*report_words(seed))  # what scores the tokens of the one scores the other's
        model = train_report_lm(tokenizer, seed)
        figures = reply_figures(model, tokenizer, seed)
    else:
        tokenizer = seq2seq_tokenizer(*report_words(seed))
        model = train_seq2seq(tokenizer, seed)
        figures = summary_figures(model, tokenizer, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors makes its files readable by their owner only
    return {"parameters": model.num_parameters(), "vocabulary": len(tokenizer), **figures}


def broken_bounds(parts: dict[str, dict[str, Any]]) -> list[str]:
    """One line for each bound that does not hold."""
    broken = []
    total = sum(figures["bytes"] for name, figures in parts.items() if name != "data")
    if total > MAX_BYTES:
        broken.append(f"the models take {total} bytes, at most {MAX_BYTES} are allowed")
    if "masked-lm" in parts:
        empty, best = (parts["masked-lm"][f"{prompt}_prompt_accuracy"] for prompt in ("empty", "best"))
        if empty > MAX_EMPTY_PROMPT_ACCURACY:
            broken.append(f"the empty prompt has accuracy {empty}, at most {MAX_EMPTY_PROMPT_ACCURACY} is allowed")
        if best < MIN_BEST_PROMPT_ACCURACY:
            broken.append(f"the best prompt has accuracy {best}, at least {MIN_BEST_PROMPT_ACCURACY} is needed")
    return broken


def main() -> int:
    parser = Parser("scripts/build_builtin_models.py", __doc__)
    default = Path(__file__).resolve().parent.parent / "common" / "builtin"
    parser.add_argument("--output", type=Path, default=default, help="folder for the parts (default: common/builtin)")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of text, weights and order (default: 0)")
    parser.add_argument("--jobs", type=int, default=2, help="parts built at a time, one core each (default: 2)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    record_file = options.output / "models.json"
    record = json.loads(record_file.read_text()) if record_file.exists() else {"parts": {}}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=options.output, prefix=".building-") as scratch:
        with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            running = {part: pool.submit(build_part, part, scratch, options.seed) for part in options.only}
            parts = {part: future.result() for part, future in running.items()}
        for part, figures in parts.items():
            print(f"{part}: {json.dumps(figures)}")
        record["parts"] |= parts
        broken = broken_bounds(record["parts"])
        if broken:
            for line in broken:
                print(f"error: {line}", file=sys.stderr)
            return 1
        for part in parts:
            with write_folder_atomic(options.output / part) as folder:
                shutil.copytree(Path(scratch) / part, folder, dirs_exist_ok=True)
    if len(parts) == len(PARTS):
        record |= {"build_seconds": round(time.monotonic() - began, 1), "jobs": options.jobs}
    write_json_atomic(record_file, record)
    return 0


if __name__ == "__main__":
    run_command(main)
