"""What every score has to satisfy.

Derive a class named ``Test...`` from :class:`ScoreContract`, give it a pytest fixture ``bench``, and run pytest.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from edgelean.shrink.axes import Axis, dissect
from edgelean.shrink.plan import Plan, make_plan
from edgelean.shrink.scores import Score


@dataclass(frozen=True)
class Bench:
    """A score, and a network on which it is tried.

    Attributes
    ----------
    open
        Gives a score that has seen nothing yet; the argument is its seed.
    model
        A network with batch norm, and a hidden layer that can lose any of its units.
    inputs, targets
        One batch for it, the targets as of a cross entropy.
    axis
        The axis of the units that `make`, `norm` and `read` tell of.
    make, read
        Paths of the module whose outputs are the units, and of the one that reads them.
    norm
        Path of the batch norm between the two; None if there is none.
    permutes
        Whether prices follow the units when these are put in another order; a score that draws lots by position cannot.
    """

    open: Callable[[int], Score]
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    axis: str
    make: str
    read: str
    norm: str | None = None
    permutes: bool = True


class ScoreContract:
    """The properties of a score, as tests of a bench."""

    def test_prices_are_finite_and_no_unit_is_worth_less_than_nothing(self, bench: Bench) -> None:
        """One price for each unit; and the same units as a spectrum, the most valuable first."""
        score, model, axis = _observed(bench)
        prices = _priced(score, axis, model)
        assert prices.shape == (axis.size,)
        assert bool(torch.isfinite(prices).all())
        assert bool((prices >= 0).all())
        spectrum = score.spectrum(axis, model)
        assert len(spectrum) == axis.size
        assert list(spectrum) == sorted(spectrum, reverse=True)

    def test_running_prices_start_at_nothing_and_never_fall(self, bench: Bench) -> None:
        """Every unit goes once, and each one adds to the price, or nothing."""
        score, model, axis = _observed(bench)
        order, running = _running(score, axis, model)
        assert sorted(order) == list(range(axis.size))
        assert len(running) == axis.size + 1
        assert running[0] == 0
        assert all(before <= after < float("inf") for before, after in pairwise(running))

    def test_unit_that_does_nothing_goes_first(self, bench: Bench) -> None:
        """A unit whose weights are all zero is the cheapest."""
        model, unit = copy.deepcopy(bench.model), 3
        with torch.no_grad():
            for path, dim in _dimensions(bench):
                for parameter in model.get_submodule(path).parameters():
                    if parameter.ndim > dim:
                        parameter.select(dim, unit).zero_()
        score, model, axis = _observed(bench, model)
        order, _ = _running(score, axis, model)
        assert order[0] == unit
        assert int(_priced(score, axis, model).argmin()) == unit

    def test_prices_follow_the_units(self, bench: Bench) -> None:
        """The same units in another order have the same prices in that order."""
        if not bench.permutes:
            return
        model = copy.deepcopy(bench.model)
        score, plain, axis = _observed(bench)
        expected = _priced(score, axis, plain)
        turned = torch.arange(axis.size).roll(axis.size // 3)
        with torch.no_grad():
            for path, dim in _dimensions(bench):
                module = model.get_submodule(path)
                for tensor in (*module.parameters(), *module.buffers()):
                    if tensor.ndim > dim and tensor.shape[dim] == axis.size:
                        tensor.copy_(tensor.index_select(dim, turned))
        score, model, axis = _observed(bench, model)
        found = _priced(score, axis, model)
        assert torch.allclose(found, expected[turned], rtol=1e-3, atol=1e-4 * float(expected.max()))

    def test_what_is_known_of_the_others_survives_a_cut(self, bench: Bench) -> None:
        """After `forget` all observations are those of the units that stay, and as large as the cut model."""
        score, model, axis = _observed(bench)
        before = {name: tensor.clone() for name, tensor in score.tensors().items()}
        plan = _plan(bench, model, axis, [2, 5])
        score.forget(plan, {axis.name: axis})
        left = [unit for unit in range(axis.size) if unit not in (2, 5)]
        after = score.tensors()
        assert after.keys() == before.keys()
        for name, tensor in before.items():
            kept = tensor
            for dim in range(tensor.ndim):
                if after[name].shape[dim] == len(left) != kept.shape[dim]:
                    kept = kept[(slice(None),) * dim + (left,)]
            assert torch.equal(after[name], kept), name

    def test_what_was_taken_earlier_can_be_put_back(self, bench: Bench) -> None:
        """Prices after a rollback, and in a new process, are those of before."""
        score, model, axis = _observed(bench)
        taken = {name: tensor.clone() for name, tensor in score.tensors().items()}
        running = _running(score, axis, model)
        score.forget(_plan(bench, model, axis, [0, 1]), {axis.name: axis})
        score.put_back(taken)
        assert _running(score, axis, model) == running
        fresh = bench.open(8)
        fresh.watch(model, {axis.name: axis})
        fresh.release()
        fresh.put_back(taken)
        assert _running(fresh, axis, model) == running

    def test_nothing_is_observed_while_it_is_not_active(self, bench: Bench) -> None:
        """Steps that are not observed leave no trace; neither do evaluations of a score that is active."""
        score, model, _ = _watching(bench, bench.model)
        before = {name: tensor.clone() for name, tensor in score.tensors().items()}
        _step(bench, model)
        score.active = True
        model.eval()
        model(bench.inputs)
        score.release()
        after = score.tensors()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())

    def test_training_does_not_notice(self, bench: Bench) -> None:
        """Outputs, gradients and buffers are the same, bit for bit, whether a step is observed or not."""
        plain = copy.deepcopy(bench.model)
        expected = _step(bench, plain)
        score, model, axis = _watching(bench, bench.model)
        score.active = True
        found = _step(bench, model)
        score.observe_gradients(model, {axis.name: axis})
        score.release()
        assert torch.equal(found, expected)
        for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
            assert mine.grad is not None
            assert other.grad is not None
            assert torch.equal(mine.grad, other.grad)
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), plain.buffers(), strict=True))
        assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())

    def test_same_seed_gives_the_same_prices(self, bench: Bench) -> None:
        """Two scores of one seed that saw the same agree on everything."""
        first, model, axis = _observed(bench)
        second, other, _ = _observed(bench)
        assert _running(first, axis, model) == _running(second, axis, other)


def _dimensions(bench: Bench) -> list[tuple[str, int]]:
    """Return the modules that hold the units, each with the dimension of its weight in which they are."""
    between = [] if bench.norm is None else [(bench.norm, 0)]
    return [(bench.make, 0), *between, (bench.read, 1)]


def _watching(bench: Bench, model: nn.Module) -> tuple[Score, nn.Module, Axis]:
    model = copy.deepcopy(model)
    axis = dissect(model, (bench.inputs[:4],)).axes[bench.axis]
    score = bench.open(7)
    score.watch(model, {axis.name: axis})
    return score, model, axis


def _observed(bench: Bench, model: nn.Module | None = None) -> tuple[Score, nn.Module, Axis]:
    """Return a score that has seen two steps of a network."""
    score, model, axis = _watching(bench, bench.model if model is None else model)
    score.active = True
    for _ in range(2):
        _step(bench, model)
        score.observe_gradients(model, {axis.name: axis})
    score.active = False
    score.release()
    return score, model, axis


def _step(bench: Bench, model: nn.Module) -> Tensor:
    """Go forward and backward once; the parameters stay as they are."""
    model.train()
    model.zero_grad()
    outputs: Tensor = model(bench.inputs)
    torch.autograd.backward(nn.functional.cross_entropy(outputs, bench.targets))
    return outputs.detach()


def _priced(score: Score, axis: Axis, model: nn.Module) -> Tensor:
    prices = score.unit_prices(axis, model)
    assert prices is not None, "a score that has seen two steps knows the price of units"
    return prices.double()


def _running(score: Score, axis: Axis, model: nn.Module) -> tuple[tuple[int, ...], tuple[float, ...]]:
    found = score.removal_prices(axis, model)
    assert found is not None, "a score that has seen two steps knows the price of units"
    return found


def _plan(bench: Bench, model: nn.Module, axis: Axis, units: list[int]) -> Plan:
    order = [*units, *(unit for unit in range(axis.size) if unit not in units)]
    anatomy = dissect(model, (bench.inputs[:4],))
    return make_plan(anatomy, {axis.name: axis.size - len(units)}, {axis.name: order}, 0.0)
