"""The law for a model that is traced in parts: its own code runs, and the masked graphs of parts stand in for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils import _pytree

from edgelean.errors import LawError
from edgelean.shrink import law
from edgelean.shrink.axes import Anatomy
from edgelean.shrink.parts import Call, Parts, inside, renamed, tensors_of_call, traced
from edgelean.shrink.plan import Plan
from edgelean.shrink.reference import casts_to_single, graph_outputs, removed_atoms, traced_with
from edgelean.shrink.trace import Trace, trace
from edgelean.shrink.untraceable import UntraceableError


class Reference(Protocol):
    """What cut versions of one model have to compute, on one probe."""

    tolerance: float

    def misfit(self, plan: Plan) -> str:
        """Return why the model's code would not run if a plan were applied, empty if shapes tell of no reason."""
        ...

    def outputs(self, plan: Plan) -> list[Tensor]:
        """Return the outputs that a plan has to lead to."""
        ...


def reference_of(model: nn.Module, anatomy: Anatomy, probe: tuple[Tensor, ...]) -> Reference:
    """Return what cut versions of a model have to compute, whether it was traced whole or in parts.

    Raises
    ------
    UntraceableError
        If a model that was traced whole cannot be traced on the probe.
    """
    if anatomy.parts is None:
        known = anatomy.found if anatomy.found is not None and traced_with(anatomy.found, probe) else None
        return law.Reference(model, known or trace(model, probe), probe)
    return PartsReference(model, anatomy.parts, probe)


class PartsReference:
    """What cut versions of a model have to compute that is traced in parts.

    Where a plan touches no statistics, that is the model itself with masked contents. Else the masked graph of each
    part whose statistics it touches takes the part's place.

    Attributes
    ----------
    tolerance
        How far outputs may differ, relative to the largest.
    """

    def __init__(self, model: nn.Module, parts: Parts, probe: tuple[Tensor, ...]) -> None:
        self._model, self._probe = model, probe
        self._calls = parts.called_with(model, probe)
        self._traces: dict[str, Trace] = {}
        for path, call in self._calls.items():
            try:
                self._traces[path] = traced(model, path, call)
            except UntraceableError:  # it was traced with other shapes; without statistics its own code tells
                continue
        self._on_shapes = [path for path in self._traces if not self._misfit_of(path, Plan((), (), {}, 0.0))]
        single = any(casts_to_single(found) for found in self._traces.values())
        self.tolerance = law.SINGLE_TOLERANCE if single else law.TOLERANCE

    def misfit(self, plan: Plan) -> str:
        """Return why the code of a part would not run if a plan were applied; empty if it would, as far as shapes tell.

        What lies between the parts is not run: it may decide by what it computes.
        """
        return next((why for path in self._on_shapes if (why := self._misfit_of(path, plan))), "")

    def _misfit_of(self, path: str, plan: Plan) -> str:
        call = self._calls[path]
        return law.misfit(call, _within(plan, path, self._traces[path]), call.inputs())

    def outputs(self, plan: Plan) -> list[Tensor]:
        """Return the outputs that a plan has to lead to.

        Raises
        ------
        LawError
            If the masked model does not run.
        """
        contents = law.masked(self._model, plan)
        with ExitStack() as stack:
            for path, found in self._traces.items():
                atoms = removed_atoms(found, _within(plan, path, found))
                if not atoms.isdisjoint(found.over()):
                    own = {name: contents[renamed(name, path)] for name in found.tensors}
                    stack.enter_context(_standing_in(self._calls[path], found, atoms, own))
            return law.outputs(self._model, contents, self._probe)


def _within(plan: Plan, path: str, found: Trace) -> Plan:
    """Return what a plan removes of a part, under the names of its trace."""
    mine = [removal for removal in plan.removals if removal.tensor.startswith(f"{path}.")]
    own = [replace(removal, tensor=inside(removal.tensor, path)) for removal in mine]
    scales = [scale for scale in plan.scales if f"{scale.path}.".startswith(f"{path}.")]
    return replace(
        plan,
        removals=tuple(removal for removal in own if removal.tensor in found.tensors),
        scales=tuple(replace(scale, path=inside(scale.path, path)) for scale in scales),
    )


@contextmanager
def _standing_in(call: Call, found: Trace, atoms: frozenset[int], contents: Mapping[str, Tensor]) -> Iterator[None]:
    """Let the masked graph of a part compute in its place, for a while."""
    shapes = [x.shape for x in call.inputs()]

    def forward(*positional: Any, **named: Any) -> Any:
        inputs = tensors_of_call((positional, named))
        if [x.shape for x in inputs] != shapes:
            raise LawError("a part of the masked model gets inputs of other shapes than that of the whole one")
        outputs = graph_outputs(found, atoms, contents, inputs)
        return _pytree.tree_unflatten(outputs, found.program.call_spec.out_spec)

    call.module.forward = forward
    try:
        yield
    finally:
        del call.module.forward
