import sys
from types import SimpleNamespace

import pytest

from pipelines import storage
from pipelines.training.config import TrainConfig
from pipelines.training.monitoring.curves import TensorBoardCurves, WandbCurves, scalars_of
from pipelines.training.monitoring.metrics_log import MetricsLog
from tests.pipelines.builders import events
from tests.s3_server import s3_server


def test_numbers_of_a_line_go_by_name_and_task():
    line = {"step": 3, "loss": 1.5, "loss_by_task": {"asr": 2.0}, "alarms": ["spike: …"], "skipped_steps": 0}
    assert scalars_of(line) == {"loss": 1.5, "loss_by_task/asr": 2.0, "skipped_steps": 0}


def test_event_files_reach_an_object_store_as_they_grow_and_at_the_end(tmp_path, monkeypatch):
    with s3_server("bucket") as server:
        run = server.uri("bucket/run")
        curves = TensorBoardCurves(run, first_step=0)
        curves.write(1, {"loss": 2.0})
        assert storage.list_names(storage.join(run, "tensorboard")) == []
        monkeypatch.setattr("pipelines.training.monitoring.curves.UPLOAD_SECONDS", 0.0)
        curves.write(2, {"loss": 1.0})
        (name,) = storage.list_names(storage.join(run, "tensorboard"))
        assert shown(run, name, tmp_path) == {("loss", 1): 2.0, ("loss", 2): 1.0}
        monkeypatch.undo()
        curves.write(3, {"loss": 0.5})
        curves.close()
        assert ("loss", 3) in shown(run, name, tmp_path)


def shown(run, name, folder):
    (folder / "events").write_bytes(storage.read_bytes(storage.join(run, "tensorboard", name)))
    return {
        (value.tag, event.step): value.simple_value
        for event in events(folder / "events")
        for value in event.summary.value
    }


def test_a_run_that_continues_tells_tensorboard_what_to_forget(tmp_path):
    TensorBoardCurves(str(tmp_path), first_step=40).close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    starts = [event.step for event in events(file) if event.HasField("session_log")]
    assert starts == [41]


@pytest.fixture
def wandb(monkeypatch):
    """Stands for the package, which is not installed here: it keeps what it is given."""
    told = SimpleNamespace(inits=[], lines=[], ended=0)

    def finish():
        told.ended += 1

    def init(**keys):
        told.inits.append(keys)
        return SimpleNamespace(log=lambda scalars, step: told.lines.append((step, scalars)), finish=finish)

    module = SimpleNamespace(init=init, __spec__=object())
    monkeypatch.setitem(sys.modules, "wandb", module)
    return told


def test_weights_and_biases_gets_the_same_run_again_when_it_continues(wandb, tmp_path):
    for step in (1, 2):
        curves = WandbCurves(f"{tmp_path}/mine", project="p", config={"steps": 6})
        curves.write(step, {"loss": 1.0})
        curves.close()
    first, second = wandb.inits
    assert first == second and (first["project"], first["name"], first["resume"]) == ("p", "mine", "allow")
    assert wandb.lines == [(1, {"loss": 1.0}), (2, {"loss": 1.0})] and wandb.ended == 2


def test_metrics_go_to_weights_and_biases_only_if_asked(wandb, tmp_path):
    line = {"step": 1, "loss": 1.0, "data_wait_fraction": 0.0}
    for project in ("", "p"):
        config = TrainConfig(manifest="m", cache="c", run=str(tmp_path / f"r{project}"), llm="tiny", wandb=project)
        log = MetricsLog(config, ["asr"], first_step=0)
        log.append(line)
        log.close()
    assert [keys["project"] for keys in wandb.inits] == ["p"]
    assert wandb.lines == [(1, {"loss": 1.0, "data_wait_fraction": 0.0})]
