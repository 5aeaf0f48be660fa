"""The whole flow on a small recipe: from a profile to a verified bundle and a report."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import edgelean
from edgelean import pipeline
from edgelean.delivery import evidence
from edgelean.errors import DivergenceError, InputError, MissingError
from edgelean.exporter.bundle import check_bundle
from edgelean.recipe import load_recipe
from edgelean.report import read_report
from edgelean.training.run import Run
from edgelean.training.trainer import prepare

TINY = str(Path(__file__).parent / "tiny_recipe.py")
PI = {"profile": "raspberry-pi-5", "latency": "50%", "energy": "60%"}


def fit(out, **changes):
    return edgelean.fit(**{"recipe": TINY, "out": out, **PI, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One finished run: its folder, its report, its events."""
    folder = tmp_path_factory.mktemp("fit") / "run"
    events = []
    report = fit(folder, on_event=events.append)
    return folder, report, events


def test_budgets_are_met_and_not_undercut(run):
    _, report, _ = run
    assert report.exit_code == 0
    assert all(verdict.outcome == "met" for verdict in report.verdicts)
    assert 0.85 <= max(verdict.value / verdict.limit for verdict in report.verdicts) <= 1


def test_shares_are_shares_of_the_full_size_model(run):
    _, report, _ = run
    shares = {verdict.quantity: verdict.limit / verdict.full_size for verdict in report.verdicts}
    assert shares == pytest.approx({"latency": 0.5, "energy": 0.6})


def test_model_gets_smaller_at_every_cut_and_every_cut_obeys_the_law(run):
    _, report, events = run
    sizes = [event["parameters"] for event in events if event["event"] == "cut"]
    assert 1 <= len(sizes) <= 8
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == report.lean.parameters < report.full_size.parameters
    assert all(cut.law_error < 1e-9 for cut in report.cuts)


def test_what_the_law_cost_is_told_and_is_a_part_of_the_training(run):
    _, report, _ = run
    assert report.law.seconds == pytest.approx(report.timing["law"])
    assert report.law.share == pytest.approx(report.law.seconds / report.lean.training_s)
    assert 0 < report.law.share < 1


def test_no_cut_happens_outside_the_window(run):
    _, report, events = run
    first, last = 0.05 * report.steps, report.steps
    steps = [event["step"] for event in events if event["event"] == "cut"]
    assert all(first <= step < last for step in steps)


def test_every_figure_of_the_board_is_labelled_as_modelled(run):
    _, report, events = run
    assert {verdict.provenance for verdict in report.verdicts} == {"modelled"}
    assert {event["provenance"] for event in events if event["event"] == "reading"} == {"modelled"}
    assert (report.full_size.provenance, report.lean.provenance) == ("modelled", "modelled")


def test_exported_file_is_checked_on_the_whole_test_split(run):
    _, report, _ = run
    assert [(check.file, check.samples, check.passed) for check in report.checks] == [("model.onnx", 96, True)]


def test_bundle_runs_without_edgelean_and_agrees_with_the_trained_model(run):
    import onnxruntime

    folder, report, _ = run
    check_bundle(folder / "bundle")
    session = onnxruntime.InferenceSession(folder / "bundle" / "model.onnx")
    test = load_recipe(TINY).data()[2]
    x, y = test.tensors
    (logits,) = session.run(None, {"input": x.numpy()})
    assert np.mean(logits.argmax(1) == y.numpy()) == pytest.approx(report.checks[0].metric_artifact)


def test_loaded_model_is_the_one_that_was_exported(run):
    folder, report, _ = run
    model = edgelean.load(folder)
    x, y = load_recipe(TINY).data()[2].tensors
    with torch.no_grad():
        accuracy = float((model(x).argmax(1) == y).double().mean())
    assert sum(parameter.numel() for parameter in model.parameters()) == report.lean.parameters
    assert accuracy == pytest.approx(report.lean.accuracy)


def test_report_on_disk_is_the_report(run):
    folder, report, _ = run
    assert read_report(folder) == report
    page = (folder / "report.html").read_text()
    assert "modelled" in page
    assert "Raspberry Pi 5" in page


def test_events_on_disk_are_the_events(run):
    folder, _, events = run
    assert [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()] == json.loads(
        json.dumps(events)
    )


def final_weights(folder):
    return edgelean.load(folder).state_dict()


def interrupted(folder, step):
    """Fit until a training step, then stop as Ctrl-C does."""

    def stop_there(event):
        if event["step"] >= step and event["event"] in ("epoch", "cut"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(folder, on_event=stop_there)


@pytest.mark.parametrize("step", [5, 25, 60])
def test_interrupted_run_goes_on_to_the_same_model_bit_for_bit(run, tmp_path, step):
    folder = tmp_path / "run"
    interrupted(folder, step)
    report = pipeline.resume(folder)
    whole, resumed = final_weights(run[0]), final_weights(folder)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert [cut.axes for cut in report.cuts] == [cut.axes for cut in run[1].cuts]
    bundles = [hashlib.sha256((f / "bundle" / "model.onnx").read_bytes()).hexdigest() for f in (run[0], folder)]
    assert bundles[0] == bundles[1]


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(run, tmp_path):
    folder = tmp_path / "run"
    interrupted(folder, 60)
    newest = max((folder / "checkpoints" / "lean").iterdir())
    tensors = newest / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    pipeline.resume(folder)
    whole, resumed = final_weights(run[0]), final_weights(folder)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_that_was_killed_while_writing_an_event_goes_on(run, tmp_path):
    folder = tmp_path / "run"
    interrupted(folder, 60)
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"event": "epoch", "st')
    report = pipeline.resume(folder)
    assert [cut.axes for cut in report.cuts] == [cut.axes for cut in run[1].cuts]
    assert [point.epoch for point in report.epochs_history] == [point.epoch for point in run[1].epochs_history]


def test_without_any_whole_checkpoint_the_run_says_so(tmp_path):
    folder = tmp_path / "run"
    interrupted(folder, 25)
    for tensors in folder.rglob("tensors.safetensors"):
        tensors.unlink()
    with pytest.raises(InputError, match="holds no whole checkpoint"):
        pipeline.resume(folder)


def test_a_cut_without_recovery_is_taken_back_and_the_next_is_smaller(tmp_path):
    """A recipe whose metric collapses for good as soon as the model shrinks."""
    recipe = load_recipe(TINY)
    full = sum(parameter.numel() for parameter in recipe.model().parameters())
    sizes = []

    def metric(output, target):
        return 0.9 if sizes[-1:] == [] or sizes[-1] == full else 0.1

    def watch(event):
        if event["event"] in ("cut", "reading"):
            sizes.append(event["parameters"])

    spoiled = edgelean.Recipe(**{**vars(recipe), "metric": metric, "epochs": 16})
    events = []
    report = edgelean.fit(spoiled, out=tmp_path / "run", on_event=lambda e: (events.append(e), watch(e)), **PI)
    rollbacks = [event for event in events if event["event"] == "rollback"]
    assert rollbacks
    assert all(later["largest_cut"] < earlier["largest_cut"] for earlier, later in itertools.pairwise(rollbacks))
    assert report.exit_code == 3
    assert {verdict.outcome for verdict in report.verdicts} == {"not met"}
    assert report.lean.parameters == full


def test_a_test_loader_that_shuffles_is_verified_all_the_same():
    session = prepare(load_recipe(TINY), 0, torch.device("cpu"))
    data = session.loaders.test.dataset
    shuffled = torch.utils.data.DataLoader(data, batch_size=16, shuffle=True)
    found = evidence(session.model, shuffled, load_recipe(TINY).metric_function(), "accuracy")
    session.model.eval()
    with torch.no_grad():
        again = torch.cat([session.model(torch.from_numpy(x)) for (x,) in found.batches])
    assert np.allclose(again.numpy(), found.outputs, atol=1e-6)
    assert len(found.outputs) == len(found.targets) == len(data)


class Stubborn(torch.nn.Module):
    """One width is written into the code: it cannot shrink. The others can."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(1, 32, 3, padding=1), torch.nn.Conv2d(32, 32, 3, padding=1)
        self.third, self.head = torch.nn.Conv2d(32, 32, 3, padding=1), torch.nn.Linear(32, 10)

    def forward(self, x):
        x = torch.relu(self.second(torch.relu(self.first(x)).reshape(-1, 32, 8, 8)))
        return self.head(torch.relu(self.third(x)).mean((2, 3)))


def test_an_axis_that_the_code_holds_on_to_is_left_alone_and_the_others_do_the_work(tmp_path):
    recipe = edgelean.Recipe(**{**vars(load_recipe(TINY)), "model": Stubborn})
    report = edgelean.fit(recipe, "raspberry-pi-5", latency="70%", energy="70%", out=tmp_path / "run")
    widths = {layer.name: layer.after for layer in report.layers}
    assert "first" not in widths
    assert widths["second"] < 32
    assert "does not run" in dict(report.refused)["first"]
    assert report.exit_code == 0


def test_a_budget_below_reach_is_refused_before_training_with_the_minimum(tmp_path):
    with pytest.raises(InputError, match=r"below anything that can be reached.*needs about [\d.]+ ms"):
        fit(tmp_path / "run", latency="1us")
    assert not (tmp_path / "run").exists()


def test_a_folder_with_another_run_is_left_alone(run):
    before = sorted(run[0].rglob("*"))
    with pytest.raises(InputError, match="is not empty"):
        fit(run[0])
    assert sorted(run[0].rglob("*")) == before


def test_a_loss_that_is_no_number_stops_with_the_step_and_keeps_the_last_checkpoint(tmp_path):
    calls = []

    def loss(output, target):
        calls.append(1)
        value = torch.nn.functional.cross_entropy(output, target)
        return value * float("nan") if len(calls) > 20 else value

    recipe = edgelean.Recipe(**{**vars(load_recipe(TINY)), "loss": loss})
    with pytest.raises(DivergenceError, match=r"the loss is nan at step \d+ of 80"):
        edgelean.fit(recipe, out=tmp_path / "run", **PI)
    assert list((tmp_path / "run" / "checkpoints" / "lean").iterdir())


def test_a_full_disk_is_found_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(InputError, match="0 MB are free"):
        fit(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_recipe_object_cannot_be_resumed_by_another_program(tmp_path):
    folder = tmp_path / "run"
    Run.create(folder, {"recipe": None}).close()
    with pytest.raises(MissingError, match="was a Python object"):
        pipeline.resume(folder)


def test_training_without_the_loop_is_not_changed_by_it(tmp_path):
    """A budget that is met from the start leaves the training exactly as it would have been."""
    from edgelean.training.trainer import train

    fit(tmp_path / "run", latency="100%", energy="100%")
    session = prepare(load_recipe(TINY), 0, torch.device("cpu"))
    train(session, lambda step, loss: None, lambda *_: None)
    met = final_weights(tmp_path / "run")
    assert all(torch.equal(met[name], tensor) for name, tensor in session.model.state_dict().items())
