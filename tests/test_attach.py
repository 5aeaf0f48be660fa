"""A training loop of one's own that the controller is attached to: a run, another start, misuse."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import edgelean
from edgelean.errors import InputError
from edgelean.profile import load_profile
from edgelean.report import read_report

STEPS = 20
PROFILE = load_profile("raspberry-pi-5").with_control({"score": "magnitude", "events": "3"})


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 5))


def adam(model):
    # Two groups, as those do who let no norm or bias decay.
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    return torch.optim.AdamW([{"params": weights, "weight_decay": 0.1}, {"params": others, "lr": 2e-3}], lr=1e-3)


def data(samples=64):
    torch.manual_seed(1)
    x = torch.randn(samples, 12)
    return x, x[:, :5].argmax(1)


def accuracy(outputs, targets):
    return float((outputs.argmax(1) == targets).double().mean())


def attached(model, optimizer, **options):
    asked = {"latency": "70%", "energy": "70%", "steps": STEPS, **options}
    return edgelean.attach(model, optimizer, data()[0][:8], PROFILE, **asked)


def train(model, optimizer, lean, steps, parts=1):
    x, y = data()
    for _ in range(steps):
        optimizer.zero_grad()
        for part in torch.randperm(len(x)).chunk(parts):
            (nn.functional.cross_entropy(model(x[part]), y[part]) / parts).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        lean.step()


def cuts(lean):
    return [event for event in lean.events if event["event"] == "cut"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A training in a folder of its own, with accumulation, and two halves with an evaluation between them."""
    folder = tmp_path_factory.mktemp("attached") / "run"
    model = network()
    optimizer = adam(model)
    lean = attached(model, optimizer, out=folder, name="mlp")
    train(model, optimizer, lean, 10, parts=4)
    model.eval()
    with torch.no_grad():
        model(data()[0])
    model.train()
    lean.record_epoch(1.0, 0.5)
    train(model, optimizer, lean, 10, parts=4)
    lean.record_epoch(0.8, 0.6)
    return folder, model, optimizer, lean, lean.finish(*data(), accuracy)


def test_attached_loop_leaves_a_run_like_that_of_fit(made):
    folder, model, _, lean, delivery = made
    report = read_report(folder)
    assert report == lean.report
    assert [verdict.outcome for verdict in delivery.verdicts] == ["met", "met"]
    assert report.recipe == "mlp"
    assert report.metric_name == "accuracy"
    assert [(point.epoch, point.step) for point in report.epochs_history] == [(1, 10), (2, 20)]
    assert len(report.cuts) == len(cuts(lean)) > 0
    assert report.lean.parameters == sum(p.numel() for p in model.parameters()) < report.full_size.parameters
    assert (folder / "bundle" / "model.onnx").is_file()
    assert (folder / "report.html").is_file()
    kinds = [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert kinds[0] == "start"
    assert {"reading", "demand", "cut", "epoch", "energy", "verdict"} <= set(kinds)
    assert kinds[-1] == "end"


def test_steps_are_those_of_the_optimizer_and_not_batches(made):
    *_, lean, _ = made
    assert lean.steps == STEPS


def test_groups_of_parameters_keep_what_is_theirs_after_cuts(made):
    _, model, optimizer, _, _ = made
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.01]
    assert {p for group in optimizer.param_groups for p in group["params"]} == set(model.parameters())
    for parameter in model.parameters():
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape


def test_early_end_is_told_in_the_report(tmp_path):
    model = network()
    optimizer = adam(model)
    lean = attached(model, optimizer, out=tmp_path / "run", latency="99%", energy="99%")
    train(model, optimizer, lean, 4)
    lean.finish(*data(), accuracy)
    assert "The training ended after 4 of 20 steps." in lean.report.caveats


def test_other_process_goes_on_where_the_first_one_was(tmp_path):
    model = network()
    optimizer = adam(model)
    lean = attached(model, optimizer, out=tmp_path / "run")
    train(model, optimizer, lean, 8)
    assert cuts(lean)
    torch.save([each.state_dict() for each in (lean, model, optimizer)], tmp_path / "state.pt")
    rest = torch.get_rng_state()
    train(model, optimizer, lean, 12)

    model_again = network()
    optimizer_again = adam(model_again)
    again = attached(model_again, optimizer_again, out=tmp_path / "run")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    for each, state in zip((again, model_again, optimizer_again), saved, strict=True):
        each.load_state_dict(state)
    torch.set_rng_state(rest)
    train(model_again, optimizer_again, again, 12)

    for mine, other in zip(model.parameters(), model_again.parameters(), strict=True):
        assert torch.equal(mine, other)
    again.finish(*data(), accuracy)
    assert [(cut.step, cut.axes) for cut in again.report.cuts] == [
        (cut["step"], tuple((axis["axis"], axis["before"], axis["after"]) for axis in cut["axes"]))
        for cut in cuts(lean)
    ]


def test_copy_of_the_model_gets_its_structure_when_a_run_goes_on():
    model, average = network(), network()
    optimizer = adam(model)
    lean = attached(model, optimizer, followers=(average,))
    train(model, optimizer, lean, 8)
    state, parameters = lean.state_dict(), copy.deepcopy(average.state_dict())

    model, average = network(), network()
    again = attached(model, adam(model), followers=(average,))
    again.load_state_dict(state)
    average.load_state_dict(parameters)
    assert {p.shape for p in average.parameters()} == {p.shape for p in model.parameters()}
    assert sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in network().parameters())


def test_cut_is_not_judged_before_its_metric_is_known():
    known = iter([0.5, 1.0, *[None] * 200])  # the metric before the first cut, and then never again
    model = network()
    optimizer = adam(model)
    lean = attached(model, optimizer, validate=lambda: next(known))
    train(model, optimizer, lean, STEPS)
    assert len(cuts(lean)) == 1


# -- misuse ------------------------------------------------------------------------------------------------------------


def test_second_call_of_step_is_refused_by_name():
    model = network()
    optimizer = adam(model)
    lean = attached(model, optimizer)
    train(model, optimizer, lean, 1)
    with pytest.raises(InputError, match="step was called twice after step 1"):
        lean.step()


def test_step_that_a_gradient_scaler_left_out_is_not_counted():
    model = network()
    optimizer = adam(model)
    lean = attached(model, optimizer)
    train(model, optimizer, lean, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    x, y = data()
    optimizer.zero_grad()
    scaler.scale(nn.functional.cross_entropy(model(x) * 1e30, y)).backward()
    scaler.step(optimizer)
    lean.step()
    assert lean.steps == 1


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_model_that_was_wrapped_after_attach_is_refused_by_name(wrap):
    model = network()
    optimizer = adam(model)
    lean = attached(model, optimizer)
    wrapped = wrap(model)
    with pytest.raises(InputError, match=r"is wrapped in (a DataParallel|torch\.compile) that was not attached"):
        train(wrapped, optimizer, lean, 1)


def test_finish_needs_steps_and_happens_once():
    model = network()
    optimizer = adam(model)
    lean = attached(model, optimizer)
    with pytest.raises(InputError, match="no step was counted"):
        lean.finish(*data(), accuracy)


def test_finished_loop_takes_no_steps(made):
    _, model, optimizer, lean, _ = made
    with pytest.raises(InputError, match="after finish"):
        train(model, optimizer, lean, 1)
    with pytest.raises(InputError, match="finished already"):
        lean.finish(*data(), accuracy)


def test_folder_with_something_else_is_refused_before_the_training(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    model = network()
    with pytest.raises(InputError, match="is not empty and is no run"):
        attached(model, adam(model), out=tmp_path)


def test_folder_of_an_earlier_run_is_not_written_over(made):
    folder, *_ = made
    model = network()
    optimizer = adam(model)
    lean = attached(model, optimizer, out=folder)
    with pytest.raises(InputError, match="holds an earlier run"):
        train(model, optimizer, lean, 1)


def test_state_of_another_model_is_refused_by_the_name_of_a_parameter():
    model = network()
    lean = attached(model, adam(model))
    state = lean.state_dict()
    state["shapes"]["5.weight"] = [3, 3]
    with pytest.raises(InputError, match=r"another model: 5\.weight"):
        lean.load_state_dict(state)
