import json
import sys
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import pytest

from common.errors import UserError
from common.training import tracking
from common.training.engine import start_engine
from common.training.tracking import MetricsLog, check_trackers, read_metrics, truncate_after


@pytest.fixture
def engine():
    return start_engine("cpu")


def write_events(path, count, **options):
    with MetricsLog(path, **options) as log:
        for step in range(count):
            log.log("reward", 0, step, **{"reward/loss": float(step)})


def test_an_event_is_one_json_object_with_the_metrics_under_their_names(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.log("policy", 2, 7, **{"policy/loss": -0.5, "policy/entropy": float("nan"), "count": 3})
    event = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert 0 <= event.pop("seconds") < 5
    assert event == {"phase": "policy", "round": 2, "step": 7, "policy/loss": -0.5, "policy/entropy": None, "count": 3}


def test_an_event_can_be_read_while_the_run_goes_on(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.log("eval", 0, 1, **{"eval/accuracy": 0.5})
        assert read_metrics(tmp_path / "metrics.jsonl")[0]["eval/accuracy"] == 0.5


def test_seconds_go_on_from_the_checkpoint(tmp_path):
    write_events(tmp_path / "metrics.jsonl", 1, seconds_before=1000.0)
    assert 1000 <= read_metrics(tmp_path / "metrics.jsonl")[0]["seconds"] < 1005


def test_a_metric_cannot_take_the_name_of_a_field(tmp_path):
    with MetricsLog(tmp_path / "metrics.jsonl") as log, pytest.raises(ValueError, match="seconds"):
        log.log("eval", 0, 1, seconds=3.0)


def test_a_process_without_a_file_writes_nothing(tmp_path):
    log = MetricsLog(None)
    log.log("eval", 0, 1, **{"eval/accuracy": 0.5})
    log.sync()
    log.close()
    assert log.events == 0
    assert list(tmp_path.iterdir()) == []


def test_reading_leaves_out_a_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write_events(path, 3)
    with open(path, "a") as file:
        file.write('{"phase": "rew')
    assert [event["step"] for event in read_metrics(path)] == [0, 1, 2]


EVENT = '{"phase": "eval", "round": 0, "step": 1, "seconds": 1.5, "eval/score": null}\n'


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{broken", "line 2: not JSON"),
        ("[1]", "line 2: not a JSON object"),
        ('{"phase": "eval"}', "line 2: no event of a run"),
        (EVENT.strip().replace("1.5", '"1.5"'), "line 2: seconds is str, which no run writes"),
    ],
)
def test_reading_names_the_line_that_is_no_event(tmp_path, line, complaint):
    path = tmp_path / "metrics.jsonl"
    path.write_text(EVENT + line + "\n")
    with pytest.raises(UserError, match=complaint):
        read_metrics(path)


def test_reading_a_missing_file_names_it(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*nothing\.jsonl"):
        read_metrics(tmp_path / "nothing.jsonl")


def test_a_resumed_run_has_the_events_of_one_that_was_never_stopped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        for step in range(5):
            log.log("reward", 0, step)
            if step == 2:
                events_at_checkpoint = log.events
    with open(path, "a") as file:
        file.write('{"torn')
    truncate_after(path, events_at_checkpoint)
    with MetricsLog(path) as log:
        assert log.events == 3
        log.log("reward", 0, 3)
    assert [event["step"] for event in read_metrics(path)] == [0, 1, 2, 3]


def test_a_file_with_fewer_events_than_the_checkpoint_knows_is_refused(tmp_path):
    write_events(tmp_path / "metrics.jsonl", 2)
    with pytest.raises(UserError, match="has 2 events, but the checkpoint was written after 3"):
        truncate_after(tmp_path / "metrics.jsonl", 3)
    with pytest.raises(UserError, match="cannot read"):
        truncate_after(tmp_path / "missing.jsonl", 3)
    truncate_after(tmp_path / "missing.jsonl", 0)


class TestTrackers:
    def test_an_unknown_tracker_is_named_with_the_nearest(self):
        with pytest.raises(UserError, match=r"no tracker 'wandbb'.*did you mean 'wandb'"):
            check_trackers(["wandbb"])

    def test_a_tracker_that_is_not_installed_is_named_with_its_command_before_any_work(self, tmp_path, monkeypatch):
        monkeypatch.setitem(tracking.TRACKERS, "wandb", ("module_that_is_not_there", "wandb"))
        with pytest.raises(UserError, match="pip install wandb"):
            MetricsLog(tmp_path / "metrics.jsonl", ["wandb"])
        assert list(tmp_path.iterdir()) == []

    @pytest.fixture
    def fake_wandb(self, monkeypatch):
        """A stand-in that keeps what accelerate's tracker hands to the package."""

        class Run:
            def __init__(self, project, **options):
                self.project, self.options, self.logged, self.finished = project, options, [], False

            def log(self, values, step=None):
                self.logged.append((step, values))

            def define_metric(self, names, step_metric):
                self.axis = (names, step_metric)

            def finish(self):
                self.finished = True

        class Config:
            def update(self, values, allow_val_change):
                module.config_values = values

        def init(project, **options):
            module.runs.append(Run(project, **options))
            return module.runs[-1]

        module = SimpleNamespace(__spec__=ModuleSpec("wandb", None), runs=[], config=Config(), init=init)
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    def test_gets_every_event_at_the_step_of_the_policy(self, tmp_path, fake_wandb, engine):
        (tmp_path / "sweep" / ".sweep").mkdir(parents=True)
        path = tmp_path / "sweep" / "sst-2" / "seed-0" / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        with MetricsLog(path, ["wandb"], engine.accelerator, project="p", config={"lr": 0.1, "names": ["a"]}) as log:
            log.log("reward", 0, 5, **{"reward/loss": 2.0})
            log.log("policy", 0, 30, **{"policy/loss": 3.0})
            log.log("reward", 1, 1, **{"reward/loss": 1.0})
        (run,) = fake_wandb.runs
        assert run.project == "p"
        assert fake_wandb.config_values == {"lr": 0.1, "names": "['a']"}
        assert run.logged == [
            (None, {"reward/loss": 2.0, "reward/round": 0, "reward/step": 5, "policy_step": 0}),
            (None, {"policy/loss": 3.0, "policy/round": 0, "policy/step": 30, "policy_step": 30}),
            (None, {"reward/loss": 1.0, "reward/round": 1, "reward/step": 1, "policy_step": 30}),
        ]
        assert run.axis == ("*", "policy_step") and run.options["name"] == "sst-2/seed-0"
        engine.end()
        assert run.finished
        assert len(read_metrics(path)) == 3

    def test_gets_a_few_texts_at_each_validation(self, tmp_path, fake_wandb, engine):
        fake_wandb.Table = lambda columns, data, dataframe: (columns, data)
        with MetricsLog(tmp_path / "metrics.jsonl", ["wandb"], engine.accelerator) as log:
            log.texts(7, [{"prompt": "' great'", "dev accuracy": 0.5}, {"prompt": "' dull'", "dev accuracy": 1.0}])
            log.texts(8, [])
        table = (["prompt", "dev accuracy"], [["' great'", "0.5"], ["' dull'", "1.0"]])
        assert [values for _, values in fake_wandb.runs[0].logged] == [{"samples": table}]
        assert read_metrics(tmp_path / "metrics.jsonl") == []

    def test_goes_on_from_the_step_of_a_resumed_run(self, tmp_path, fake_wandb, engine):
        with MetricsLog(tmp_path / "metrics.jsonl") as log:
            log.log("policy", 0, 7)
            log.log("reward", 1, 3)
        with MetricsLog(tmp_path / "metrics.jsonl", ["wandb"], engine.accelerator) as log:
            log.log("reward", 1, 4)
        assert fake_wandb.runs[0].logged[0][1]["policy_step"] == 7

    def test_one_that_cannot_start_is_a_clear_error(self, tmp_path, fake_wandb, engine):
        def init(project, **options):
            raise RuntimeError("no API key configured")

        fake_wandb.init = init
        with pytest.raises(UserError, match="report_to: wandb could not start: no API key configured"):
            MetricsLog(tmp_path / "metrics.jsonl", ["wandb"], engine.accelerator)

    def test_tensorboard_writes_into_the_run_folder(self, tmp_path, engine):
        pytest.importorskip("tensorboard")
        write_events(tmp_path / "metrics.jsonl", 2, report_to=["tensorboard"], accelerator=engine.accelerator)
        engine.end()
        assert list((tmp_path / "tensorboard").rglob("events.out.tfevents.*"))
