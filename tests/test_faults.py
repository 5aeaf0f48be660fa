"""What happens to a run to which something happens: docs/faults.md has the table."""

from __future__ import annotations

import json
import re
import shutil
import signal
from dataclasses import fields, replace
from pathlib import Path

import chance_recipe
import pytest
import torch
from faults import (
    ASKED,
    ENDS,
    MOMENTS,
    RECIPE,
    TrainedError,
    commanded,
    end_of_training,
    fit,
    killed,
    remember_exports,
)
from torch import nn

import edgelean
from edgelean import chapters, job, pipeline
from edgelean.errors import DivergenceError, InputError
from edgelean.exporter.bundle import check_bundle
from edgelean.recipe import load_recipe
from edgelean.report import read_report
from edgelean.report.history import spent_on
from edgelean.training import trainer
from edgelean.training.checkpoint import load_newest
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
    """What happened, without the times; the full-size training after the lean one."""
    ignored = ("resume", "energy", "note", "verdict", "end")
    timed = ("time_s", "step_s")
    events = [event for event in Run.open(folder).events() if event["event"] not in ignored]
    told = [{key: value for key, value in event.items() if key not in timed} for event in events]
    return sorted(told, key=lambda event: event["event"] == "full_size_epoch")


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


OUTCOMES = {
    "a scheduler that ends the process": (130, "interrupted; go on with: edgelean fit --resume {folder}"),
    "a terminal that is closed": (130, "interrupted; go on with: edgelean fit --resume {folder}"),
    "a target that dies": (5, "the board does not answer any more\nthe run can go on: edgelean fit --resume {folder}"),
    "a disk that is full": (
        2,
        "{folder}/checkpoints/lean/000002 cannot be written: No space left on device; make room\n"
        "the run can go on: edgelean fit --resume {folder}",
    ),
    "a folder that cannot be written any more": (
        2,
        "written: Read-only file system; make the file system writable\nthe run can go on",
    ),
    "data that cannot be read any more": (2, "the data cannot be read: OSError: the share is gone"),
}


def ended_early(folder, memo, trouble):
    """Fit with the command line in a process that meets some trouble; return its exit code and what it said."""
    settings = [f"--set={key}={value}" for key, value in ASKED["settings"].items()]
    asked = [f"--{key}={ASKED[key]}" for key in ("profile", "latency", "energy")]
    return commanded(["fit", RECIPE, *asked, *settings, f"--out={folder}"], memo, trouble)


@pytest.mark.parametrize("trouble", OUTCOMES)
def test_command_that_ends_early_says_why_and_how_to_go_on(whole, memo, tmp_path, training_only, trouble):
    folder = tmp_path / "run"
    code, message = OUTCOMES[trouble]
    found, said = ended_early(folder, memo, trouble)
    assert (found, "Traceback" in said) == (code, False), said
    assert message.format(folder=folder) in said
    with pytest.raises(TrainedError):
        pipeline.resume(folder)
    assert last(folder) == last(whole)
    assert story(folder) == story(whole)


def test_ctrl_c_leaves_a_run_that_the_named_command_finishes(whole, memo, tmp_path):
    folder = tmp_path / "run"
    code, said = ended_early(folder, memo, "Ctrl-C")
    assert (code, "Traceback" in said) == (130, False), said
    how = re.search(r"interrupted; go on with: edgelean (fit --resume \S+)", said)[1]
    code, said = commanded(how.split(), memo, "nothing")
    assert (code, "the run goes on after this step" in said) == (0, True), said
    assert last(folder) == last(whole)


@pytest.fixture
def trained(whole, tmp_path, training_only):
    """A copy of the run that was left alone, as it was before it was delivered."""
    return shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("bundle", "report.*"))


def resumed(folder, **changes):
    with pytest.raises(TrainedError):
        pipeline.resume(folder, **changes)
    return Run.open(folder).events()


@pytest.mark.parametrize("file", ["values.json", "tensors.safetensors"])
def test_a_tampered_checkpoint_is_named_and_the_one_before_leads_to_the_same_model(whole, trained, file):
    path = trained / "checkpoints" / "lean" / "000004" / file
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    notes = [event["text"] for event in resumed(trained) if event["event"] == "note"]
    assert notes == ["checkpoint 000004 was damaged, the run went on from 000003"]
    assert last(trained) == last(whole)
    assert story(trained) == story(whole)


def test_what_was_asked_cannot_be_changed_behind_a_runs_back(trained):
    path = trained / "run.json"
    path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(InputError, match=r"run.json is not what the run began with: put it back"):
        pipeline.resume(trained)


def test_another_version_of_something_is_noted_in_words(trained, monkeypatch):
    now = job.made_with()
    monkeypatch.setattr(job, "made_with", lambda: now | {"torch": "9.9", "threads": "7"})
    notes = [event["text"] for event in resumed(trained) if event["event"] == "note"]
    doubt = "the result is not that of one uninterrupted run"
    assert notes == [
        f"the run began with torch {now['torch']} and went on with 9.9: {doubt}",
        f"the run began with threads 1 and went on with 7: {doubt}",
    ]


def test_a_recipe_that_was_changed_is_noted_in_words(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from chance_recipe import recipe\n")
    run = Run.create(tmp_path / "run", job.ask(str(file), "raspberry-pi-5").asked)
    assert job.asked_before(run).changes == ()
    file.write_text("from chance_recipe import recipe  # another one\n")
    (note,) = job.asked_before(run).changes
    run.close()
    assert note.startswith(f"the recipe {file} was changed after the run began")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": lambda: chance_recipe.data()[1:] + chance_recipe.data()[1:2]},
            "had 24 steps, with the data as",
        ),
        ({"model": lambda: nn.Sequential(chance_recipe.model())}, "the saved tensors are those of another model"),
        ({"optimizer": lambda weights: torch.optim.SGD([{"params": [w]} for w in weights])}, "is not the one of the"),
    ],
)
def test_a_recipe_that_does_not_fit_its_checkpoints_is_refused(trained, changes, message):
    other = edgelean.Recipe(**{**vars(chance_recipe.recipe), **changes})
    with pytest.raises(InputError, match=message):
        pipeline.resume(trained, recipe=other)


def test_what_a_killed_process_took_is_in_the_report(memo, tmp_path, training_only):
    folder = tmp_path / "run"
    assert killed(folder, memo, "while the full-size model trains") == -signal.SIGKILL
    values = load_newest(folder / "checkpoints" / "full-size").values
    events = resumed(folder)
    parts = [(event["chapter"], event["part"]) for event in events if event["event"] == "energy"]
    assert {("full-size", 0), ("full-size", 1), ("lean", 0)} <= set(parts)
    assert len(set(parts)) == len(parts)  # nothing counts twice
    lost = next(event for event in events if event["event"] == "energy" and event["chapter"] == "full-size")
    assert lost["seconds"] == values["spent"]["seconds"] > 0
    assert spent_on(events, "full-size").seconds > lost["seconds"]
    assert load_newest(folder / "checkpoints" / "full-size").values["timing"].keys() >= values["timing"].keys()


def test_a_run_that_ended_can_be_ended_again(whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    before = read_report(folder)
    report = pipeline.resume(folder)
    assert report.cuts == before.cuts
    assert [verdict.outcome for verdict in report.verdicts] == [verdict.outcome for verdict in before.verdicts]
    assert report.seconds > before.seconds
    assert sum(report.timing.values()) > 0.99 * report.seconds  # nothing is left out
    assert [event["event"] for event in Run.open(folder).events()].count("end") == 1


def test_the_recipe_of_a_program_goes_on_in_that_program(whole, tmp_path, training_only):
    def stop(event):
        if event["event"] == "cut":
            raise KeyboardInterrupt

    folder = tmp_path / "run"
    recipe = load_recipe(RECIPE)
    with pytest.raises(KeyboardInterrupt):
        fit(folder, recipe=recipe, on_event=stop)
    resumed(folder, recipe=recipe)
    assert last(folder) == last(whole)


def test_a_loss_that_is_no_number_is_not_offered_again(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "train_step", lambda *_: float("nan"))
    with pytest.raises(DivergenceError, match=r"the loss is nan at step 1 of 24") as caught:
        fit(tmp_path / "run")
    assert not hasattr(caught.value, "__notes__")


def test_the_table_of_faults_names_tests_that_there_are():
    here = Path(__file__).parent
    named = set(re.findall(r"`(test_\w+)`", (here.parent / "docs" / "faults.md").read_text()))
    there = {name for file in here.glob("test_*.py") for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)}
    assert len(named) > 20
    assert named <= there


def test_everything_that_the_loop_remembers_comes_back(tmp_path, monkeypatch):
    """Also what a later version adds to it: whatever is a field of it counts."""
    folder, kept, found = tmp_path / "run", [], []
    pack = chapters.pack_loop

    def seen(loop):
        kept.append(replace(loop.progress))
        return pack(loop)

    def stop(event):
        if event["event"] == "epoch" and event["step"] > 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(chapters, "pack_loop", seen)
    with pytest.raises(KeyboardInterrupt):
        fit(folder, energy="92%", on_event=stop)  # so much that the cut of the first epoch waits for its judgement
    monkeypatch.setattr(
        pipeline, "train_lean", lambda session, loop, *_: found.append(loop.progress) or end_of_training()
    )
    resumed(folder)
    remembered, progress = kept[-1], found[0]
    assert remembered.pending is not None
    assert torch.equal(*(each.pending.network.tensors["0.weight"] for each in (remembered, progress)))
    names = [field.name for field in fields(progress) if field.name != "pending"]
    assert {name: getattr(progress, name) for name in names} == {name: getattr(remembered, name) for name in names}
