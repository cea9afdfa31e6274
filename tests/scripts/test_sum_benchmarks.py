"""The benchmarks of summarization run, on tiny models, and both of their ways give the same numbers."""

import json

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from common.errors import UserError
from scripts.benchmarks import sum_measure, sum_models, sum_task_speed
from scripts.benchmarks.sum_measure import MODEL, RANKING, STEP, Case
from scripts.benchmarks.sum_straightforward import RewardLM, StraightforwardSummaries
from sum_task.preferences import Preference
from tests.sum_task.tiny import save_t5, word_tokenizer, write_rows


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A file of articles, and a folder with a tokenizer."""
    folder = tmp_path_factory.mktemp("sum_benchmarks")
    return write_rows(folder / "rows.jsonl", 60, 0), save_t5(folder / "t5", word_tokenizer())


@pytest.fixture(autouse=True)
def _no_wordnet(monkeypatch):
    """Summaries of few words take METEOR's place, in both ways."""

    def score(predictions, references, sources):
        return [len(prediction.split()) / 8 for prediction in predictions]

    def meteor(self, tokens, mask, references):
        texts = self.tokenizer.batch_decode([row[real] for row, real in zip(tokens, mask, strict=True)], True)
        return torch.tensor(score(texts, references, None), dtype=torch.float64)

    monkeypatch.setattr(sum_models, "make_preference", lambda spec: Preference(spec, score))
    monkeypatch.setattr(StraightforwardSummaries, "meteor", meteor)


@pytest.fixture(autouse=True)
def _same_threads_after():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def tiny_setting(data, length=16, filled=False, batch_size=8):
    return sum_models.make_sum_setting(data[0], data[1], length, filled, True, batch_size)


def test_both_ways_give_the_same_numbers(data, tmp_path):
    differences = sum_task_speed.compare(tiny_setting(data), 0, tmp_path)
    assert max(differences.values()) <= 1e-5
    assert "policy gradient, relative" in differences


@pytest.mark.parametrize(
    ("name", "what"), [("meteor", "METEOR"), ("reward_loss", "reward loss"), ("policy_loss", "policy loss")]
)
def test_speed_is_not_reported_for_different_numbers(data, tmp_path, monkeypatch, name, what):
    right = getattr(StraightforwardSummaries, name)
    monkeypatch.setattr(StraightforwardSummaries, name, lambda *args: right(*args) + 1e-4)
    with pytest.raises(UserError, match=f"{what} differs"):
        sum_task_speed.compare(tiny_setting(data), 0, tmp_path)


def test_the_straightforward_way_computes_attention_as_transformers_does(data):
    setting = tiny_setting(data)
    project_model = sum_models.make_reward_model(setting)
    for model in (sum_models.make_policy_lm(setting), RewardLM.like(project_model)):
        assert {m.config._attn_implementation for m in model.modules() if isinstance(m, T5Attention)} == {"sdpa"}


@pytest.mark.parametrize(("way", "rows"), [("straightforward", 24), ("project", 8)])
def test_a_reward_step_is_measured_and_its_encoded_rows_counted(data, tmp_path, way, rows):
    case = Case("reward", way, 16, False, 8, 2)
    found = sum_measure.measure(case, tiny_setting(data), 0, tmp_path, profiled=False)
    assert found["encoded"] == {"policy": rows, "reward model": rows}
    assert found["peak"] >= found["states"] > 0
    assert len(found["losses"]) == 2
    assert len(found["clock"]["cpu"]) == (2 if way == "straightforward" else 1)  # what is sampled at once is one piece
    assert found["losses"] == pytest.approx([1.79, 1.79], abs=0.5)  # ln 3! where nothing has been learnt


@pytest.mark.parametrize("way", sum_measure.WAYS)
def test_a_policy_step_is_measured(data, tmp_path, way):
    case = Case("policy", way, 16, False, 8, 1)
    found = sum_measure.measure(case, tiny_setting(data), 0, tmp_path, profiled=False)
    assert found["encoded"] == {"policy": 8, "reward model": 8}


def test_filled_articles_have_all_the_same_number_of_tokens(data):
    train = tiny_setting(data, length=40, filled=True).train
    assert {len(source) for source in train.sources} == {40}
    assert len(train) >= 8


def test_batches_are_spread_over_the_widths(data):
    setting = tiny_setting(data, length=24, batch_size=1)
    widths = sorted(len(source) for source in setting.train.sources)
    chosen = sum_measure._evenly([[i] for i in range(60)], 3, setting)
    assert [len(setting.train.sources[row]) for [row] in chosen] == [widths[10], widths[30], widths[50]]


@pytest.mark.parametrize(("step", "rows"), [("policy", 8), ("later policy", 0)])
def test_a_policy_step_computes_the_rewards_of_its_rows_or_none(data, tmp_path, step, rows):
    case = Case(step, "project", 16, False, 8, 1)
    found = sum_measure.measure(case, tiny_setting(data), 0, tmp_path, False)
    assert found["encoded"] == {"policy": 8, "reward model": rows}


def test_shares_by_hand():
    events = [
        ("aten::mm", [], 100.0),  # outside of the step
        (STEP, [], 1.0),
        ("aten::mm", ["aten::linear", STEP], 4.0),
        ("aten::bmm", ["_Attention", STEP], 2.0),
        ("aten::_softmax", ["_Attention", STEP], 1.0),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", [STEP], 0.5),
        ("aten::relu", [MODEL, STEP], 0.25),
        ("aten::threshold_backward", ["autograd::engine::evaluate_function: ReluBackward0", STEP], 0.125),
        ("aten::topk", [STEP], 0.125),
        (RANKING, [STEP], 0.25),
        ("aten::tensor", [RANKING, STEP], 0.25),
        ("aten::sqrt", ["Optimizer.step#Adam.step", STEP], 0.5),
    ]
    assert sum_measure.shares(events) == pytest.approx({
        "matrix products": 0.6,
        "rest of attention": 0.15,
        "dropout, norms, activations and copies in the models": 0.0375,
        "drawing tokens, losses, batches": 0.0125,
        "optimizer": 0.05,
        "texts and METEOR": 0.05,
        "Python, in and out of the models": 0.1,
    })  # fmt: skip


@pytest.mark.slow
def test_report_of_a_whole_run(data, tmp_path, monkeypatch, capsys):
    def in_this_process(case, arguments, profiled=False):
        setting = tiny_setting(data, case.length, case.filled, case.batch_size)
        return sum_measure.measure(case, setting, 0, tmp_path, profiled)

    monkeypatch.setattr(sum_task_speed, "in_own_process", in_this_process)
    output = tmp_path / "speed.json"
    words = ["--tiny", "--train_file", data[0], "--tokenizer", data[1], "--repeats", "1", "--batches", "1"]
    sum_task_speed.main([*words, "--output", str(output)])
    report = capsys.readouterr().out
    assert "| reward step, sources of 16 tokens |" in report
    assert "| reward step, sources of 24 tokens | not run* |" in report
    assert report.count("| ... rewards known from an earlier epoch |") == 2
    figures = json.loads(output.read_text(encoding="utf-8"))
    assert all(sum(own["parts"].values()) == pytest.approx(1) for own in figures["profiles"])


def test_one_process_prints_one_case(data, capsys):
    case = json.dumps({"step": "policy", "way": "project", "length": 16, "filled": False, "batch_size": 8, "count": 1})
    sum_measure.main(["--tiny", "--train_file", data[0], "--tokenizer", data[1], "--case", case])
    assert json.loads(capsys.readouterr().out)["widths"][0] <= 16
