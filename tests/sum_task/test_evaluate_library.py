"""Metrics of the `evaluate` library, loaded from folders that these tests write."""

import textwrap

import pytest

from common.errors import UserError
from common.training.inputs import fingerprints
from sum_task import evaluation_metrics
from sum_task.evaluate_library import LibraryMetric, MetricSpec, load_metric, load_metrics
from sum_task.meteor import Meteor, require_wordnet
from sum_task.preferences import make_preference
from sum_task.rouge import rouge_f1
from sum_task.run_sum import run, run_options

PREDICTIONS = ["the storm hit the town", "a flood", "two killed in the north"]
REFERENCES = ["a storm hit the town", "the flood on monday", "fire in the south killed two"]
SOURCES = ["long", "longer", "longest"]

CODE = """
import datasets
import evaluate

class Words(evaluate.Metric):
    def _info(self):
        texts = {{name: datasets.Value("string") for name in {inputs}}}
        features = datasets.Features(texts)
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, {inputs_as_names}, **options):
        {body}
"""


def write_metric(folder, name, body, inputs=("predictions", "references")):
    """A metric in a folder of its own, as the library wants it."""
    place = folder / name
    place.mkdir()
    code = CODE.format(inputs=inputs, inputs_as_names=", ".join(inputs), body=textwrap.indent(body, " " * 8).strip())
    (place / f"{name}.py").write_text(code, encoding="utf-8")
    return str(place)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("metrics")


@pytest.fixture(scope="module")
def lists(folder):
    """Two lists, a number for each prediction, and how often it was called."""
    return write_metric(
        folder, "lists",
        "self.calls = getattr(self, 'calls', 0) + 1\n"
        "words = [options.get('weight', 1) * len(p.split()) for p in predictions]\n"
        "return {'words': words, 'letters': [len(p) for p in predictions], 'version': 'one'}",
    )  # fmt: skip


@pytest.fixture(scope="module")
def corpus(folder):
    """One number for all predictions together."""
    return write_metric(folder, "corpus", "return {'corpus': sum(len(p.split()) for p in predictions) / 2}")


class TestSpec:
    def test_every_part(self):
        spec = MetricSpec.from_text(
            "evaluate:user/name?key=f1&lang=en&num=2&flag=true&names=[a, b]&lower_is_better=true"
        )
        assert (spec.path, spec.key, spec.config, spec.lower_is_better) == ("user/name", "f1", None, True)
        assert spec.arguments == {"lang": "en", "num": 2, "flag": True, "names": ["a", "b"]}
        assert spec.name == "name_f1"
        assert MetricSpec.from_text("evaluate:glue?config=mrpc").config == "mrpc"

    def test_a_metric_whose_key_is_its_name_is_called_so_once(self):
        assert MetricSpec.from_text("evaluate:meteor?key=meteor").name == "meteor"

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            ("evaluate:", "has not the form"),
            ("evaluate:a?key", "not of the form name=value"),
            ("evaluate:a?k=1&k=2", "comes twice"),
            ("evaluate:a?k=[", "no YAML"),
            ("evaluate:a?lower_is_better=3", "true or false"),
        ],
    )
    def test_mistakes(self, text, what):
        with pytest.raises(UserError, match=what):
            MetricSpec.from_text(text)


class TestScores:
    def test_a_list_is_taken_as_it_is_in_one_call(self, lists):
        metric = load_metric(f"evaluate:{lists}?key=words&weight=2")
        before = metric._module.calls
        assert metric(PREDICTIONS, REFERENCES, SOURCES) == [10, 4, 10]
        assert metric._module.calls == before + 1
        assert metric([], [], []) == []

    def test_a_number_is_asked_for_a_prediction_at_a_time(self, corpus):
        assert load_metric(f"evaluate:{corpus}")(PREDICTIONS, REFERENCES, SOURCES) == [2.5, 1, 2.5]

    def test_lower_can_be_better(self, corpus):
        metric = load_metric(f"evaluate:{corpus}?lower_is_better=true")
        assert metric(PREDICTIONS, REFERENCES, SOURCES) == [-2.5, -1, -2.5]

    def test_sources_are_given_to_a_metric_that_wants_them(self, folder):
        path = write_metric(folder, "wants", "return {'x': [len(s) for s in sources]}", ("sources", "predictions"))
        assert load_metric(f"evaluate:{path}")(PREDICTIONS, REFERENCES, SOURCES) == [4, 6, 7]

    def test_it_is_a_preference(self, lists):
        preference = make_preference(f"evaluate:{lists}?key=letters")
        assert preference(PREDICTIONS, REFERENCES, SOURCES).tolist() == [22, 7, 23]


class TestMistakes:
    def test_a_metric_that_is_not_there(self, tmp_path):
        with pytest.raises(UserError, match="cannot load it"):
            load_metric(f"evaluate:{tmp_path / 'none'}")

    def test_a_key_must_be_chosen_and_exist(self, lists):
        with pytest.raises(UserError, match=r"has words, letters; choose one with \?key="):
            load_metric(f"evaluate:{lists}")
        with pytest.raises(UserError, match="no score 'leters'; did you mean 'letters'"):
            load_metric(f"evaluate:{lists}?key=leters")

    @pytest.mark.parametrize(
        ("name", "body", "what"),
        [
            ("breaks", "raise KeyError('why')", "the metric failed: KeyError: 'why'"),
            ("short", "return {'x': [1.0] * min(2, len(predictions))}", "gave 2 numbers for 3 summaries"),
            ("endless", "return {'x': float('nan')}", "for summary 0 of 3 it gave nan"),
        ],
    )
    def test_what_is_no_score_of_single_summaries(self, folder, name, body, what):
        path = write_metric(folder, name, body)
        with pytest.raises(UserError, match=what):
            load_metric(f"evaluate:{path}")(PREDICTIONS, REFERENCES, SOURCES)

    def test_a_metric_of_something_else(self, folder):
        path = write_metric(folder, "pixels", "return {'x': 1.0}", ("pixels",))
        with pytest.raises(UserError, match="needs 'pixels' for each text"):
            load_metric(f"evaluate:{path}")

    def test_two_of_one_name(self):
        with pytest.raises(UserError, match="two are called a_f1"):
            load_metrics(["evaluate:a?key=f1", "evaluate:a?key=f1&lang=en"])


def test_a_run_ranks_and_is_tested_by_them(tiny, lists, corpus, tmp_path, without_wordnet):
    found = run(
        tiny.settings(
            output_dir=tmp_path / "run", preference=f"evaluate:{lists}?key=words", num_train_epochs=0.5,
            eval_metrics=f"evaluate:{corpus},evaluate:{lists}?key=letters",
        )
    )  # fmt: skip
    assert found["test_corpus"] == pytest.approx(found["test_length"] / 2)
    assert found["test_lists_letters"] > found["test_length"]


def test_what_local_metrics_and_meteor_read_is_part_of_what_a_run_is_made_from(tiny, lists, corpus, monkeypatch):
    monkeypatch.setattr(evaluation_metrics, "wordnet_path", lambda: str(lists))
    settings = tiny.settings(
        preference=f"evaluate:{lists}?key=words", eval_metrics=f"evaluate:{corpus},evaluate:no_such"
    )
    inputs = run_options(settings).inputs
    assert {name for name in inputs if name.startswith("metric")} == {f"metric {lists}", f"metric {corpus}"}
    found = fingerprints(inputs)
    assert found["wordnet"] == found[f"metric {lists}"] != {}


def theirs(text: str) -> LibraryMetric:
    try:
        return load_metric(text)
    except UserError as error:
        pytest.skip(f"the hub's code is not here: {error}")


def test_meteor_is_that_of_the_library():
    metric = theirs("evaluate:meteor")
    require_wordnet()
    assert Meteor()(PREDICTIONS, REFERENCES) == pytest.approx(metric(PREDICTIONS, REFERENCES, SOURCES), abs=1e-12)


def test_rouge_is_that_of_the_library():
    for name in ("rouge1", "rouge2", "rougeL"):
        metric = theirs(f"evaluate:rouge?key={name}&use_stemmer=true&use_aggregator=false")
        ours = [rouge_f1(p, r, [name])[name] for p, r in zip(PREDICTIONS, REFERENCES, strict=True)]
        assert ours == pytest.approx(metric(PREDICTIONS, REFERENCES, SOURCES), abs=1e-12)
