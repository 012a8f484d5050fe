import json
import logging
import sys
from types import SimpleNamespace

import pytest
from study_factory import configure

from cytominer_tools.errors import InputError
from deepprofile.trackers import trackers

ROWS = [
    {
        "epoch": n,
        "learning_rate": 0.1 / n,
        "loss": 2.0 / n,
        "accuracy": 0.5 + 0.1 * n,
        "val_loss": 3.0 / n,
        "val_accuracy": 0.25 * n if n > 1 else float("nan"),
    }
    for n in (1, 2, 3)
]


@pytest.fixture
def begin(tmp_path):
    """A function that follows a training: `begin(names, rows so far, rows to come)`."""

    def follow(names, history, to_come=()):
        study = configure(tmp_path, train={"track": names, "class_weights": {"A 1": 2.0, "b": 1.0}})
        folder = study.models / "trained"
        with trackers(study, folder, list(history)) as track:
            for row in to_come:
                if isinstance(row, BaseException):
                    raise row
                track(row)
        return folder

    return follow


# --- TensorBoard, read back by itself
def points(folder, run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    found = EventAccumulator(str(folder / "logs" / run)).Reload()
    return {
        name: [(e.step, round(float(make_ndarray(e.tensor_proto)), 6)) for e in found.Tensors(name)]
        for name in found.Tags()["tensors"]
    }


def test_tensorboard_has_a_point_an_epoch(begin):
    folder = begin(["tensorboard"], [], ROWS)
    train, validation = points(folder, "train"), points(folder, "validation")
    assert train.keys() == {"learning_rate", "loss", "accuracy"}
    assert train["loss"] == [(1, 2.0), (2, 1.0), (3, 0.666667)]
    assert validation == {"loss": [(1, 3.0), (2, 1.5), (3, 1.0)], "accuracy": [(2, 0.5), (3, 0.75)]}
    assert not (folder / "tracking.json").exists()


def test_tensorboard_goes_on_without_doubled_points(begin):
    begin(["tensorboard"], [], ROWS[:2])
    folder = begin(["tensorboard"], ROWS[:2], ROWS[2:])
    assert [step for step, _ in points(folder, "train")["loss"]] == [1, 2, 3]
    # killed between an epoch's state and its point: the row is in the history alone
    folder = begin(["tensorboard"], ROWS)
    assert [step for step, _ in points(folder, "train")["loss"]] == [1, 2, 3]


def test_tensorboard_is_there_while_training_runs(tmp_path):
    study = configure(tmp_path, train={})
    with trackers(study, tmp_path, []) as track:
        track(ROWS[0])
        assert points(tmp_path, "train")["loss"] == [(1, 2.0)]


def test_without_tensorboard_nothing_is_written(begin, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "tensorboard.summary", None)
    caplog.set_level(logging.INFO, "deepprofile")
    folder = begin(["tensorboard"], [], ROWS)
    assert [r.message for r in caplog.records] == [
        "train: no logs for TensorBoard, which is not installed; history.csv and curves.png hold the same"
    ]
    assert not folder.exists()


# --- MLflow and Weights & Biases: what is asked of them
class Service:
    """Runs of a tracking service, by their id: {"settings", "points": [(step, metrics)], "ends", "name"}."""

    def __init__(self):
        self.runs, self.active, self.broken = {}, [], False

    def open(self, run, name):
        if run is None:
            run = f"run{len(self.runs)}"
            self.runs[run] = {"settings": {}, "points": [], "ends": [], "name": name}
        elif run not in self.runs:
            raise RuntimeError(f"no run {run}\nand a long explanation")
        self.active.append(run)
        return run

    def add(self, run, step, metrics):
        if self.broken:
            raise ConnectionError("network is gone")
        self.runs[run]["points"].append((step, metrics))


def fake_mlflow(service):
    def start_run(run_id=None, run_name=None, nested=False):
        assert nested
        run = service.open(run_id, run_name)
        held = service.runs[run]["points"]
        return SimpleNamespace(
            info=SimpleNamespace(run_id=run), data=SimpleNamespace(metrics=dict(held[-1][1]) if held else {})
        )

    def log_params(settings):
        assert len(settings) <= 100
        service.runs[service.active[-1]]["settings"].update(settings)

    return SimpleNamespace(
        start_run=start_run,
        log_params=log_params,
        log_metrics=lambda metrics, step: service.add(service.active[-1], step, metrics),
        end_run=lambda status: service.runs[service.active.pop()]["ends"].append(status),
    )


def fake_wandb(service):
    class Run:
        def __init__(self, run):
            self.id = run
            held = service.runs[run]["points"]
            self.step = held[-1][0] + 1 if held else 0

        def log(self, metrics, step, commit):
            assert commit
            service.add(self.id, step, metrics)

        def finish(self, exit_code):
            service.runs[self.id]["ends"].append("FAILED" if exit_code else "FINISHED")

    def init(id, resume, name, config, dir, reinit, settings):
        assert (resume, reinit) == ("allow" if id else None, "create_new")
        assert settings == {"console": "off", "disable_code": True, "disable_git": True}
        service.place = dir
        run = Run(service.open(id, name))
        service.runs[run.id]["settings"].update(config)
        return run

    return SimpleNamespace(init=init)


@pytest.fixture(params=["mlflow", "wandb"])
def service(request, monkeypatch):
    service = Service()
    service.name = request.param
    fake = {"mlflow": fake_mlflow, "wandb": fake_wandb}[request.param]
    monkeypatch.setitem(sys.modules, request.param, fake(service))
    monkeypatch.delenv("WANDB_DIR", raising=False)
    return service


def test_a_run_has_settings_and_a_step_an_epoch(begin, service, tmp_path):
    folder = begin([service.name], [], ROWS)
    (run,) = service.runs.values()
    assert run["name"] == f"{tmp_path.name}/trained"
    assert run["settings"]["train.learning_rate"] == 0.02
    assert run["settings"]["train.schedule.kind"] == "cosine"
    assert run["settings"]["train.class_weights"] == '{"A 1": 2.0, "b": 1.0}'  # no names for a service
    assert run["settings"]["seed"] == 3
    assert [step for step, _ in run["points"]] == [1, 2, 3]
    first, last = run["points"][0][1], run["points"][-1][1]
    assert last == {**ROWS[2], "epoch": 3}
    assert "val_accuracy" not in first  # not a number
    assert run["ends"] == ["FINISHED"]
    assert json.loads((folder / "tracking.json").read_text()) == {service.name: "run0"}
    if service.name == "wandb":
        assert service.place == str(folder)


def test_a_training_that_was_stopped_goes_on_in_its_run(begin, service):
    with pytest.raises(KeyboardInterrupt):
        begin([service.name], [], [ROWS[0], KeyboardInterrupt()])
    begin([service.name], ROWS[:2], ROWS[2:])  # the second epoch was kept, and not yet sent
    (run,) = service.runs.values()
    assert [step for step, _ in run["points"]] == [1, 2, 3]
    assert run["ends"] == ["FAILED", "FINISHED"]
    begin([service.name], ROWS)  # killed after the last epoch
    assert [step for step, _ in run["points"]] == [1, 2, 3]


def test_what_a_service_lost_is_sent_again(begin, service):
    begin([service.name], [], ROWS[:2])
    service.runs["run0"]["points"].pop()
    begin([service.name], ROWS[:2], ROWS[2:])
    assert [step for step, _ in service.runs["run0"]["points"]] == [1, 2, 3]


def test_a_tracker_that_fails_does_not_end_the_training(begin, service, caplog):
    def broken():
        yield ROWS[0]
        service.broken = True
        yield from ROWS[1:]

    folder = begin([service.name, "tensorboard"], [], broken())
    assert [r.message for r in caplog.records] == [
        f"train: {service.name} fails and is left out from here on (network is gone)"
    ]
    assert [step for step, _ in service.runs["run0"]["points"]] == [1]
    assert service.runs["run0"]["ends"] == ["FAILED"]
    assert not service.active or service.name == "wandb"
    assert len(points(folder, "train")["loss"]) == 3
    service.broken = False
    begin([service.name], ROWS)  # what it missed is made up for
    assert [step for step, _ in service.runs["run0"]["points"]] == [1, 2, 3]


def test_more_settings_than_a_service_takes_at_once(tmp_path, service):
    study = configure(tmp_path, train={"track": [service.name], "class_weights": {f"c{n}": 1.0 for n in range(250)}})
    with trackers(study, tmp_path, []):
        pass
    assert service.runs["run0"]["settings"]["train.class_weights.c249"] == 1.0


# --- errors
@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_not_installed(begin, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    mend = rf"`pip install 'deepprofile\[{name}\]'`, or leave it out"
    with pytest.raises(InputError, match=rf"train\.track: {name} is not installed; {mend}"):
        begin([name], [])


def test_a_run_that_is_gone(begin, service):
    begin([service.name], [], ROWS[:1])
    service.runs.clear()
    mend = r"mend that, or leave it out, or delete .*tracking\.json for new runs"
    with pytest.raises(InputError, match=rf"{service.name} cannot begin \(no run run0\); {mend}"):
        begin([service.name], ROWS[:1])


def test_the_first_is_closed_where_the_second_cannot_begin(begin, service, monkeypatch):
    other = {"mlflow": "wandb", "wandb": "mlflow"}[service.name]
    monkeypatch.setitem(sys.modules, other, None)
    with pytest.raises(InputError, match=other):
        begin([service.name, other], [])
    assert service.runs["run0"]["ends"] == ["FAILED"]


def test_a_run_that_cannot_be_described_is_ended(begin, monkeypatch):
    service = Service()
    fake = fake_mlflow(service)
    monkeypatch.setitem(sys.modules, "mlflow", fake)

    def refuse(settings):
        raise RuntimeError("the value is too long")

    fake.log_params = refuse
    with pytest.raises(InputError, match=r"mlflow cannot begin \(the value is too long\); mend that, or leave it out$"):
        begin(["mlflow"], [])
    assert service.active == []
