"""What happens to a run to which something happens: docs/faults.md has the table."""

from __future__ import annotations

import json
import shutil
import signal

import pytest
from faults import ENDS, MOMENTS, TrainedError, end_of_training, fit, killed, remember_exports

from edgelean import pipeline
from edgelean.exporter.bundle import check_bundle
from edgelean.report import read_report
from edgelean.training.run import Run


@pytest.fixture(scope="module")
def memo(tmp_path_factory):
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(autouse=True)
def _quick_exports(memo, monkeypatch):
    remember_exports(memo, monkeypatch.setattr)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, memo):
    """A run that was left alone."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        remember_exports(memo, patch.setattr)
        fit(folder)
    return folder


@pytest.fixture
def training_only(monkeypatch):
    monkeypatch.setattr(pipeline, "deliver", end_of_training)


def last(folder):
    """The last checkpoint of each training, byte for byte: weights, optimizer, scores, random numbers."""
    found = {}
    for chapter in sorted((folder / "checkpoints").iterdir()):
        newest = max(chapter.iterdir())
        found[chapter.name] = (newest.name, (newest / "tensors.safetensors").read_bytes())
    return found


def story(folder):
    """What happened, without the times."""
    ignored = ("resume", "energy", "note", "verdict", "end")
    timed = ("time_s", "step_s")
    events = [event for event in Run.open(folder).events() if event["event"] not in ignored]
    return [{key: value for key, value in event.items() if key not in timed} for event in events]


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_training_goes_on_to_the_same_model_bit_for_bit(whole, memo, tmp_path, training_only, moment):
    folder = tmp_path / "run"
    assert killed(folder, memo, moment) == -signal.SIGKILL
    with pytest.raises(TrainedError):
        pipeline.resume(folder)
    assert last(folder) == last(whole)
    assert story(folder) == story(whole)


@pytest.mark.parametrize("moment", ENDS)
def test_run_killed_while_it_ends_is_ended_by_the_next(whole, memo, tmp_path, moment):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("bundle", "report.*"))
    assert killed(folder, memo, moment) == -signal.SIGKILL
    report = pipeline.resume(folder)
    assert report == read_report(folder)
    assert [path.name for path in folder.iterdir() if path.name.startswith(".") or path.suffix == ".part"] == []
    wanted, found = (check_bundle(each / "bundle")["files"]["model.onnx"] for each in (whole, folder))
    assert found == wanted
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events][-1] == "end"
