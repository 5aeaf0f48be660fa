"""The law: a cut model computes exactly what the uncut model computes with the removed units masked to zero."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgelean.errors import LawError
from edgelean.nn import StateSpace
from edgelean.shrink.attributes import numbers_of, set_numbers
from edgelean.shrink.balance import Reduction
from edgelean.shrink.bypass import without
from edgelean.shrink.cut import kept_of, tensors_of
from edgelean.shrink.followers import Keep, named_tensors, sliced
from edgelean.shrink.modules import align, follow
from edgelean.shrink.parametrized import gains, normed
from edgelean.shrink.plan import Plan
from edgelean.shrink.reference import (
    casts_to_single,
    double,
    doubled,
    graph_outputs,
    leaves,
    removed_atoms,
    removed_branches,
)
from edgelean.shrink.states import simulated
from edgelean.shrink.trace import Trace
from edgelean.shrink.wide import Wide, wide, zeroed

TOLERANCE = 1e-7
"""In float64 there is little but rounding; an eps that torch takes from the precision shows up to here."""

FAILURES = (RuntimeError, ValueError, LookupError, TypeError, AssertionError, ArithmeticError, AttributeError)
"""What code raises that does not fit the shapes of its tensors."""

SINGLE_TOLERANCE = 1e-4
"""For models that cannot be run in float64."""

STATES_TOLERANCE = 1e-3
"""The poles of a layer are stored in single precision, and their powers amplify its rounding."""


def outputs(model: nn.Module, tensors: Mapping[str, Tensor], probe: tuple[Tensor, ...]) -> list[Tensor]:
    """Run a model in evaluation mode with other contents, leaving it as it is.

    Parameters
    ----------
    tensors
        Contents by name, as of `tensors_of`, of whatever shapes.
    probe
        Inputs of one small batch.

    Returns
    -------
    list
        Every output tensor: in float64, or in the model's own precision where it holds on to that.

    Raises
    ------
    LawError
        If the model does not run with these contents.
    """

    def run() -> list[Tensor]:
        try:
            return _run(model, {name: wide(tensor) for name, tensor in tensors.items()}, doubled(probe))
        except RuntimeError:  # the model may make tensors of a precision of its own
            own = tensors_of(model)
            return _run(model, {name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}, probe)

    return _evaluated(model, run)


def _evaluated(model: nn.Module, run: Callable[[], list[Tensor]]) -> list[Tensor]:
    """Run something in evaluation mode, without gradients; whatever the model's code raises is a broken law."""
    before = [
        (held, dict(held)) for module in model.modules() for held in (vars(module), module._parameters, module._buffers)
    ]
    model.eval()
    try:
        with torch.no_grad():
            return run()
    except FAILURES as error:
        raise LawError(f"the cut model does not run: {(str(error).strip() or repr(error)).splitlines()[0]}") from None
    finally:
        # A model may remember what it computed: masks, positions. Where one module has two names, functional_call
        # itself leaves the other contents in it.
        for held, contents in before:
            held.clear()
            held.update(contents)
        align(model)


class _Aligned(nn.Module):
    """A model whose modules know the shapes of the contents that it is run with."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Any) -> Any:
        align(self.model)
        return self.model(*inputs)


def _run(model: nn.Module, tensors: Mapping[str, Tensor], probe: tuple[Tensor, ...]) -> list[Tensor]:
    contents = {f"model.{name}": tensor for name, tensor in tensors.items()}
    found = leaves(functional_call(_Aligned(model), contents, probe))
    return [double(output) if isinstance(output, Wide) else output for output in found]


def cut_outputs(model: nn.Module, plan: Plan, probe: tuple[Tensor, ...]) -> list[Tensor]:
    """Return what a model would compute if a plan were applied; the model stays as it is.

    Raises
    ------
    LawError
        If it would not run.
    """
    kept, whole = kept_of(model, plan), _contents(model)
    contents = {name: sliced(tensor, kept.get(name, {})) for name, tensor in whole.items()}
    contents |= gains(model, whole, contents, kept)
    with _following(model, plan):
        return outputs(model, {name: contents[name] for name in tensors_of(model)}, probe)


def misfit(model: nn.Module, plan: Plan, probe: tuple[Tensor, ...]) -> str:
    """Return why a model's code would not run if a plan were applied, empty if it would; only shapes are computed."""
    with _following(model, plan):
        try:
            dry_run(model, probe, kept_of(model, plan))
        except LawError as error:
            return str(error)
    return ""


def dry_run(model: nn.Module, probe: tuple[Tensor, ...], kept: Mapping[str, Keep]) -> None:
    """Run a model of which some is cut in evaluation mode, as it is exported; only shapes are computed.

    Raises
    ------
    LawError
        If it does not run.
    """
    contents = {}
    for name, tensor in named_tensors(model).items():
        sizes = {dim: len(indices) for dim, indices in kept.get(name, {}).items()}
        shape = [sizes.get(dim, size) for dim, size in enumerate(tensor.shape)]
        contents[name] = torch.empty(shape, dtype=tensor.dtype, device="meta")
    left = {name: contents[name] for name in tensors_of(model)}
    with _as_if_exporting():
        _evaluated(model, lambda: _run(model, left, tuple(x.to("meta") for x in probe)))


@contextmanager
def _as_if_exporting() -> Iterator[None]:
    """Let code that asks whether it is exported take that path, which may read other numbers than the usual one."""
    state = torch.compiler
    before = state._is_compiling_flag, state._is_exporting_flag
    state._is_compiling_flag = state._is_exporting_flag = True
    try:
        yield
    finally:
        state._is_compiling_flag, state._is_exporting_flag = before


@contextmanager
def _following(model: nn.Module, plan: Plan) -> Iterator[None]:
    """Let a model's code follow a plan, for a while: its numbers, and the modules that go."""
    before = numbers_of(model)
    follow(model, plan)
    try:
        with without(model, plan.detours):
            yield
    finally:
        set_numbers(model, before)


class Reference:
    """What cut versions of one model have to compute, on one probe.

    Where a plan touches neither statistics nor blocks, and zeros make no quotient infinite, that is the model itself
    with masked contents, else the masked graph.

    Attributes
    ----------
    tolerance
        How far outputs may differ, relative to the largest.
    """

    def __init__(self, model: nn.Module, found: Trace, probe: tuple[Tensor, ...]) -> None:
        self._model, self._found, self._probe = model, found, probe
        self._over = found.over()
        self.tolerance = SINGLE_TOLERANCE if casts_to_single(found) else TOLERANCE

    def misfit(self, plan: Plan) -> str:
        """Return why the model's code would not run if a plan were applied; empty if it would."""
        return misfit(self._model, plan, self._probe)

    def outputs(self, plan: Plan) -> list[Tensor]:
        """Return the outputs that a plan has to lead to."""
        contents = masked(self._model, plan)
        atoms, branches = removed_atoms(self._found, plan), removed_branches(self._found, plan)
        if not branches and atoms.isdisjoint(self._over):
            found = outputs(self._model, contents, self._probe)
            if all(bool(torch.isfinite(output).all()) for output in found):
                return found
        try:
            return graph_outputs(self._found, atoms, contents, self._probe, branches)
        except FAILURES as error:
            raise LawError(f"the masked graph does not run: {str(error).splitlines()[0]}") from None


def masked(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Return the contents of a model in float64, with everything that the plan removes set to zero."""
    contents = {name: wide(tensor) for name, tensor in tensors_of(model).items()}
    for removal in plan.removals:
        contents[removal.tensor] = zeroed(contents[removal.tensor], removal.dim, removal.indices)
    whole = _contents(model)
    # A cut computes gains in the precision that they are stored in, so they are computed in it here.
    own = {name: contents[name].to(whole[name].dtype) for name in normed(model)}
    return contents | gains(model, whole, contents | own, {})


def _contents(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in named_tensors(model).items()}


def deviation(expected: list[Tensor], found: list[Tensor]) -> float:
    """Return the largest difference of the outputs, relative to the largest expected output.

    Raises
    ------
    LawError
        If shapes differ or something is not finite.
    """
    worst = 0.0
    for left, right in zip(expected, found, strict=True):
        if left.shape != right.shape or not (torch.isfinite(left).all() and torch.isfinite(right).all()):
            raise LawError(f"the cut model returns {tuple(right.shape)}, the masked model {tuple(left.shape)}")
        scale = float(left.abs().max()) or 1.0
        worst = max(worst, float((left - right).abs().max()) / scale)
    return worst


def distance(left: list[Tensor], right: list[Tensor]) -> float:
    """Return the root of the summed squared differences of two lists of outputs."""
    return math.sqrt(sum(float((a - b).square().sum()) for a, b in zip(left, right, strict=True)))


def check(expected: list[Tensor], found: list[Tensor], tolerance: float = TOLERANCE) -> float:
    """Return the deviation if the law holds.

    Outputs in single precision may differ by `SINGLE_TOLERANCE`.

    Raises
    ------
    LawError
        If it does not.
    """
    error = deviation(expected, found)
    if any(output.dtype in (torch.float32, torch.float16, torch.bfloat16) for output in found):
        tolerance = max(tolerance, SINGLE_TOLERANCE)
    if error > tolerance:
        raise LawError(
            f"the cut model differs from the masked model by {error:.2g} (relative), allowed are {tolerance:g}"
        )
    return error


def check_states(layer: StateSpace, reduction: Reduction, inputs: Tensor) -> float:
    """Return how far a truncated layer is from the reduced system that it was given, run step by step.

    A truncation has no masked counterpart: the reduced system of balanced truncation is what the layer has to compute.

    Parameters
    ----------
    inputs
        Sequences, ``[batch, time, width]``.

    Raises
    ------
    LawError
        If its outputs differ by more than single precision explains.
    """
    u = inputs.detach().double()
    assert isinstance(layer, nn.Module)
    (found,) = outputs(layer, tensors_of(layer), (u,))
    expected = simulated(reduction.system, u) + layer.D.detach().double() * u
    return check([expected], [found], STATES_TOLERANCE)
