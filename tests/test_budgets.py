"""Memory, size and accuracy loss as budgets: how they are written, counted, refused, judged and met."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import edgelean
from edgelean.bench import Bench
from edgelean.board import load_board
from edgelean.budget import Budget, parse_budget
from edgelean.errors import InputError
from edgelean.feasibility import Reach, reach_of, refuse_the_unreachable, warnings_on
from edgelean.judging import Kept, judge, judge_loss
from edgelean.profile import load_profile
from edgelean.quantity import QUANTITIES, amount
from edgelean.reading import Figure, Provenance, Reading
from edgelean.recipe import load_recipe
from edgelean.stopwatch import Stopwatch
from edgelean.target.modelled import ModelledTarget

TINY = str(Path(__file__).parent / "tiny_recipe.py")
FLOPS = 2.4e6
"""Of the tiny model, for one sample."""


@pytest.mark.parametrize(
    ("quantity", "text", "limit"),
    [
        ("memory", "2MB", 2e6),
        ("memory", "1.5 GB", 1.5e9),
        ("size", "300kB", 3e5),
        ("size", "512B", 512),
        ("accuracy_loss", "2 points", 2),
        ("accuracy_loss", "1point", 1),
    ],
)
def test_a_budget_is_kept_in_the_one_unit_of_its_quantity(quantity, text, limit):
    assert parse_budget(quantity, text).limit == pytest.approx(limit)


@pytest.mark.parametrize(
    ("quantity", "text", "complaint"),
    [
        ("memory", "2", 'such as "2MB"'),
        ("size", "300KB", 'such as "300kB"'),
        ("size", "2ms", 'such as "300kB"'),
        ("accuracy_loss", "2%", 'such as "2 points"'),
        ("accuracy_loss", "0 points", "above 0"),
    ],
)
def test_a_budget_in_another_unit_is_answered_with_its_own(quantity, text, complaint):
    with pytest.raises(InputError, match=quantity.replace("_", " ")) as caught:
        parse_budget(quantity, text)
    assert complaint in str(caught.value)


@given(st.sampled_from(QUANTITIES), st.floats(1e-3, 1e12))
def test_every_budget_that_is_printed_can_be_read_again(quantity, limit):
    budget = Budget(quantity=quantity, limit=limit)
    assert parse_budget(quantity, str(budget)).limit == pytest.approx(limit, rel=1e-9)


def test_an_accuracy_loss_alone_is_no_budget_since_no_cut_brings_it_nearer():
    profile = load_profile("raspberry-pi-5")
    with pytest.raises(ValueError, match="give a latency"):
        type(profile.budgets)(accuracy_loss="2 points")


def test_a_cut_may_lose_no_more_than_the_whole_run_may():
    profile = load_profile("raspberry-pi-5")
    assert profile.tolerance == profile.accuracy.cut_tolerance
    assert profile.with_budgets(accuracy_loss="1 point").tolerance == pytest.approx(0.01)
    assert profile.with_budgets(accuracy_loss="50 points").tolerance == profile.accuracy.cut_tolerance


@given(st.floats(0.1, 9e9))
def test_bytes_are_told_without_exponents(value):
    assert "e" not in amount(value, "bytes", 2).lower().removesuffix("e")


def figure(value, unit, provenance=Provenance.MODELLED, half=0.0):
    return Figure(value, value - half, value + half, unit, provenance, "a method")


def test_noise_leaves_what_is_timed_undecided_and_what_is_counted_not():
    budgets = load_profile("raspberry-pi-5").with_budgets("2ms", "2mJ", "2kB", "2kB").budgets
    reading = Reading(figure(1, "ms"), figure(1, "mJ"), 1, 50, noise="busy")
    reading = replace(reading, memory=figure(1e3, "bytes"), size=figure(3e3, "bytes"))
    limits = {budget.quantity: budget.limit for budget in budgets.costs}
    outcomes = {verdict.quantity: verdict.outcome for verdict in judge(budgets, reading, limits, {})}
    assert outcomes == {"latency": "undecided", "energy": "undecided", "memory": "met", "size": "not met"}


@pytest.mark.parametrize(
    ("full", "lean", "outcome"), [(0.95, 0.94, "met"), (0.95, 0.92, "not met"), (0.9, 0.95, "met")]
)
def test_an_accuracy_loss_is_judged_in_points(full, lean, outcome):
    verdict = judge_loss(parse_budget("accuracy_loss", "2 points"), Kept(full, lean, "test split"))
    assert (verdict.outcome, verdict.unit) == (outcome, "points")
    assert verdict.value == pytest.approx(100 * (full - lean))


def test_a_metric_that_is_no_number_is_lost_altogether():
    verdict = judge_loss(parse_budget("accuracy_loss", "2 points"), Kept(0.9, float("nan"), ""))
    assert (verdict.outcome, verdict.value) == ("not met", pytest.approx(90))


# -- what can be reached -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Liar(ModelledTarget):
    """A target that measures, and finds small models three times slower than its cost model says."""

    provenance: Provenance = Provenance.MEASURED

    def read(self, candidate):
        reading = super().read(candidate)
        slow = 1.0 if sum(operator.flops for operator in candidate.operators) > FLOPS / 2 else 3.0
        value = slow * reading.latency.value
        return replace(reading, latency=figure(value, "ms", Provenance.MEASURED, 0.01 * value))


@pytest.fixture(scope="module")
def bench():
    """The tiny model where it is measured, with budgets on what can be counted."""
    recipe = load_recipe(TINY)
    profile = load_profile("raspberry-pi-5").with_budgets(size="50%", memory="50%")
    inputs = torch.stack([recipe.data()[1][i][0] for i in range(8)])
    target = Liar(load_board(profile.board), profile.precision, profile.batch)
    return Bench(recipe.model(), (inputs,), profile, target, Stopwatch())


class Rows(nn.Module):
    """Reads rows with an LSTM, which a file holds as one operator for each layer."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(8, 192, num_layers=2, batch_first=True)
        self.head = nn.Linear(192, 10)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


@pytest.fixture
def rows_reader():
    """An LSTM on a board that is modelled."""
    profile = load_profile("jetson-orin")
    target = ModelledTarget(load_board(profile.board), profile.precision, profile.batch)
    return Bench(Rows(), (torch.randn(8, 8, 8),), profile, target, Stopwatch())


def test_a_budget_is_refused_by_the_smallest_model_as_it_was_measured(bench):
    before = {name: tensor.clone() for name, tensor in bench.model.state_dict().items()}
    start = bench.observed(bench.read())
    predicted = bench.cost({name: axis.least(8) for name, axis in bench.anatomy.axes.items()})["latency"]
    predicted *= start["latency"].measured / start["latency"].cost
    limits = {"latency": 1.5 * predicted}
    reach = reach_of(bench, 8, start, limits)
    assert reach["latency"].provenance == "measured"
    assert reach["latency"].least == pytest.approx(3 * predicted, rel=0.05)
    with pytest.raises(InputError, match=r"below anything that can be reached.*\(measured\)"):
        refuse_the_unreachable(reach, 8, limits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in bench.model.state_dict().items())
    # Where not even a cost model that is far off could be wrong, nothing has to be built.
    assert reach_of(bench, 8, start, {"latency": 10 * predicted})["latency"].provenance == "modelled"


def test_a_modelled_reach_is_that_of_the_file_where_the_trace_counts_other_operators(rows_reader):
    bench, floor = rows_reader, 8
    start = bench.observed(bench.read())
    assert not bench.trace_tells()
    least = {name: axis.least(floor) for name, axis in bench.anatomy.axes.items()}
    reach = reach_of(bench, floor, start, {"latency": 0.5 * start["latency"].measured})["latency"]
    assert (reach.provenance, reach.least) == ("modelled", bench.read_cut(least).latency.value)


def test_every_budget_out_of_reach_is_named_with_its_number():
    reach = {name: Reach(10.0, 10.0, 90.0, Provenance.MODELLED) for name in ("latency", "size")}
    with pytest.raises(InputError) as caught:
        refuse_the_unreachable(reach, 8, {"latency": 5.0, "size": 9.0})
    assert "latency budget of 5 ms" in str(caught.value)
    assert "size budget of 9 B" in str(caught.value)


@pytest.mark.parametrize(("limit", "warned"), [(10.5, True), (11.5, False)])
def test_a_budget_near_the_edge_is_warned_about(limit, warned):
    reach = {"energy": Reach(10.0, 10.0, 90.0, Provenance.MODELLED)}
    assert bool(warnings_on(reach, {"energy": limit})) == warned


def test_what_is_predicted_of_a_structure_is_what_its_exported_file_holds(bench):
    bench.read()
    whole, predicted = bench.read_artifact(), bench.cost({})
    assert predicted["size"] == pytest.approx(whole.size.value, rel=1e-6)
    assert predicted["memory"] == pytest.approx(whole.memory.value, rel=1e-6)
    assert (whole.size.provenance, whole.memory.provenance) == ("measured", "modelled")
    assert bench.observed(whole).keys() == {"latency", "energy", "memory", "size"}
    keep = dict.fromkeys(bench.anatomy.axes, 12)
    cut, expected = bench.read_cut(keep), bench.cost(keep)
    assert expected["size"] == pytest.approx(cut.size.value, rel=0.05)
    assert expected["memory"] == pytest.approx(cut.memory.value, rel=0.05)
    assert cut.size.value < 0.3 * whole.size.value


def test_less_of_the_model_is_smaller_and_takes_less_memory(bench):
    widths = [dict.fromkeys(bench.anatomy.axes, kept) for kept in (32, 24, 16, 8)]
    for quantity in ("memory", "size"):
        costs = [bench.cost(keep)[quantity] for keep in widths]
        assert costs == sorted(set(costs), reverse=True)


# -- a run -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that only the size of the file binds, and that may lose next to nothing."""
    folder = tmp_path_factory.mktemp("budgets") / "run"
    events = []
    asked = {"latency": "100%", "energy": "100%", "memory": "90%", "size": "40%", "accuracy_loss": "90 points"}
    settings = {"events": "4", "epochs": "8"}
    report = edgelean.fit(TINY, "raspberry-pi-5", out=folder, on_event=events.append, settings=settings, **asked)
    return folder, report, events


def test_the_exported_file_is_as_small_as_its_budget(run):
    folder, report, _ = run
    verdicts = {verdict.quantity: verdict for verdict in report.verdicts}
    assert list(verdicts) == list(QUANTITIES)
    assert report.exit_code == 0
    size = verdicts["size"]
    assert size.value == (folder / "bundle" / "model.onnx").stat().st_size
    assert size.provenance == "measured"
    assert 0.75 <= size.value / size.limit <= 1


def test_the_binding_budget_is_named_and_has_a_price_at_every_cut(run):
    _, report, _ = run
    cuts = [decision for decision in report.decisions if decision.axes]
    assert cuts
    assert {decision.binding for decision in cuts} == {"size"}
    assert all({one.quantity: one.price for one in decision.seen}["size"] > 0 for decision in cuts)
    assert all({one.quantity: one.price for one in decision.seen}["latency"] == 0 for decision in cuts)


def test_each_decision_tells_what_was_read_and_what_came_of_it(run):
    _, report, events = run
    readings = {event["step"]: event for event in events if event["event"] == "reading"}
    for decision in (each for each in report.decisions if each.axes):
        size = next(one for one in decision.seen if one.quantity == "size")
        assert size.measured_after == readings[decision.step]["size_bytes"] < size.measured
        assert decision.metric_recovered is not None


def test_a_verdict_on_a_run_is_in_its_manifest(run):
    from edgelean.exporter.bundle import check_bundle

    told = {verdict["quantity"]: verdict["outcome"] for verdict in check_bundle(run[0] / "bundle")["verdicts"]}
    assert told == dict.fromkeys(QUANTITIES, "met")


def test_a_budget_on_the_accuracy_needs_something_to_tell_it_by():
    model = load_recipe(TINY).model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(InputError, match="give validate"):
        edgelean.attach(model, optimizer, torch.zeros(4, 1, 8, 8), "raspberry-pi-5", steps=10, accuracy_loss="2 points")


def test_budgets_against_the_accuracy_end_not_met_with_what_could_be_had(tmp_path):
    """A recipe whose metric falls by ten points for good as soon as the model shrinks, and may fall by five."""
    recipe = load_recipe(TINY)
    full = sum(parameter.numel() for parameter in recipe.model().parameters())
    sizes = []

    def watch(event):
        if "parameters" in event:
            sizes.append(event["parameters"])

    def metric(output, target):
        return 0.8 if sizes and sizes[-1] < full else 0.9

    spoiled = edgelean.Recipe(**{**vars(recipe), "metric": metric, "epochs": 12})
    asked = {"latency": "60%", "energy": "100%", "accuracy_loss": "5 points"}
    few = {"largest_cut": "0.08"}
    report = edgelean.fit(spoiled, "raspberry-pi-5", out=tmp_path / "run", on_event=watch, settings=few, **asked)
    assert report.exit_code == 3
    assert {v.quantity: v.outcome for v in report.verdicts} == {
        "latency": "not met",
        "energy": "met",
        "accuracy_loss": "met",
    }
    assert {point.metric for point in report.front} == {0.8, 0.9}
    assert [point.kept for point in report.front if point.metric == 0.8][:1] == [False]
    assert "The nearest budgets that hold" in report.nearest[0]
    page = (tmp_path / "run" / "report.html").read_text().replace("\u00a0", " ")
    assert report.nearest[0].split(":")[0] in page
