"""What happens to one network of the zoo: how much can be cut, whether it is exact, and whether life goes on."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo_networks.network import Network
from edgelean.errors import EdgeleanError
from edgelean.exporter.onnx import export_onnx
from edgelean.shrink import cut, law
from edgelean.shrink.axes import Anatomy, dissect
from edgelean.shrink.prove import halved, prove
from edgelean.shrink.reference import double, doubled, leaves
from edgelean.shrink.trace import trace

NOISE = 0.02
"""Added to every weight: no gate of a fresh network is closed, no norm is the identity."""


@dataclass(frozen=True)
class Row:
    """One network; shares are fractions of its parameters.

    Attributes
    ----------
    seconds
        Of CPU time that the analysis took, all threads together; torch.export included.
    halved
        Share that goes when every axis loses half of its units.
    most
        Share that goes when every axis keeps one unit.
    error
        How far the cut model is from the masked one, relative to the largest output; NaN where nothing was compared.
    effect
        How far it is from the uncut one: a check that could not fail would show 0.
    training, export
        ``"yes"``, or what went wrong.
    cut_ms
        CPU time that the cut itself took, between two steps of an optimizer with moments; NaN where it failed.
    memory
        What the analysis added to the memory of the process at its peak, as a multiple of the parameters; NaN where the
        system does not tell.
    """

    name: str
    family: str
    parameters: int
    axes: int
    refused: int
    seconds: float
    halved: float
    most: float
    error: float
    effect: float
    tolerance: float
    training: str
    export: str
    cut_ms: float
    problem: str = ""
    memory: float = math.nan

    def exact(self) -> bool:
        """Tell whether what was cut is exact, and was cut at all."""
        return not self.problem and (self.axes == 0 or self.error <= self.tolerance)

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain JSON types."""
        return asdict(self)


def build(network: Network) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a network in evaluation mode whose weights and statistics are nothing special, and an input."""
    torch.manual_seed(0)
    model, inputs = network.make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(NOISE * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.8, 1.2)
    return model.eval(), inputs


def judge(network: Network) -> Row:
    """Dissect, prove, cut, train on and export one network."""
    model, inputs = build(network)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    before = _resident_bytes("VmRSS")
    _forget_peak()
    started = time.process_time()
    try:
        anatomy = dissect(model, inputs)
        anatomy = prove(model, anatomy, inputs).applied(anatomy)
    except Exception as error:  # a benchmark reports whatever happens and goes on
        return _failed(network, parameters, time.process_time() - started, error)
    seconds = time.process_time() - started
    memory = (_resident_bytes("VmHWM") - before) / sum(p.numel() * p.element_size() for p in model.parameters())
    half = {name: -(-axis.size // 2) for name, axis in anatomy.axes.items()}
    row = Row(
        network.name, network.family, parameters, len(anatomy.axes), len(anatomy.refused), seconds,
        1 - _left(model, anatomy, half), 1 - _left(model, anatomy, dict.fromkeys(half, 1)),
        math.nan, math.nan, math.nan, "", "", math.nan, memory=memory,
    )  # fmt: skip
    try:
        deviation, effect, tolerance = _exactness(model, anatomy, inputs)
    except Exception as failure:  # as above
        return Row(**{**asdict(row), "problem": _words(failure)})
    training, lean, cut_ms = _training(model, anatomy, inputs)
    exported = _export(lean, model, inputs) if lean is not None else ""
    found = {"error": deviation, "effect": effect, "tolerance": tolerance, "training": training, "export": exported}
    return Row(**{**asdict(row), **found, "cut_ms": cut_ms})


def _forget_peak() -> None:
    """Let the peak of the memory begin anew, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident_bytes(key: str) -> float:
    """Return ``VmRSS`` or its peak ``VmHWM`` of this process; NaN where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{key}:"):
                return 1024.0 * int(line.split()[1])
    return math.nan


def _failed(network: Network, parameters: int, seconds: float, error: Exception) -> Row:
    nothing = (math.nan, math.nan, math.nan, "", "", math.nan)
    return Row(network.name, network.family, parameters, 0, 0, seconds, 0.0, 0.0, *nothing, problem=_words(error))


def _words(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:160]


def _left(model: nn.Module, anatomy: Anatomy, keep: Mapping[str, int]) -> float:
    """Return the share of the parameters that is left, counted element by element."""
    gone: dict[tuple[str, int], set[int]] = {}
    for name, axis in anatomy.axes.items():
        for slot, elements in axis.slots.items():
            gone.setdefault(slot, set()).update(elements[: axis.size - keep[name]].reshape(-1).tolist())
    whole = left = 0
    for name, parameter in model.named_parameters():
        whole += parameter.numel()
        left += math.prod(size - len(gone.get((name, dim), ())) for dim, size in enumerate(parameter.shape))
    return left / whole


def _exactness(model: nn.Module, anatomy: Anatomy, inputs: tuple[Tensor, ...]) -> tuple[float, float, float]:
    """Return the error of the really cut model, what the cut changed, and the tolerance."""
    plan = halved(anatomy)
    reference = law.Reference(model, trace(model, inputs), inputs)
    expected = reference.outputs(plan)
    whole = law.outputs(model, {name: tensor.detach() for name, tensor in cut.tensors_of(model).items()}, inputs)
    if not plan.cuts:
        return 0.0, 0.0, reference.tolerance
    lean = copy.deepcopy(model)
    cut.apply(lean, plan)
    with torch.no_grad():
        try:
            found, tolerance = leaves(copy.deepcopy(lean).double()(*doubled(inputs))), reference.tolerance
        except RuntimeError:  # the model's own code makes tensors in single precision
            found, tolerance = leaves(lean(*inputs)), law.SINGLE_TOLERANCE
    found = [double(x) for x in found]
    return law.deviation(expected, found), law.deviation(whole, found), tolerance


def _training(model: nn.Module, anatomy: Anatomy, inputs: tuple[Tensor, ...]) -> tuple[str, nn.Module | None, float]:
    """Cut between two steps of one optimizer; tell whether every weight with a gradient still moves, and the ms."""
    lean = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(lean.parameters(), lr=1e-3)
    plan = halved(anatomy)
    try:
        _step(lean, optimizer, inputs)
        started = time.process_time()
        cut.apply(lean, plan, optimizer)
        cut_ms = 1e3 * (time.process_time() - started)
        before = {name: parameter.detach().clone() for name, parameter in lean.named_parameters()}
        _step(lean, optimizer, inputs)
    except Exception as error:  # as above
        return _words(error), None, math.nan
    still = [
        name
        for name, parameter in lean.named_parameters()
        if parameter.grad is not None and parameter.grad.abs().max() > 0 and torch.equal(parameter, before[name])
    ]
    return (f"{len(still)} weights stand still: {still[0]}" if still else "yes"), lean.eval(), cut_ms


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: tuple[Tensor, ...]) -> None:
    outputs = [output for output in leaves(model(*inputs)) if output.is_floating_point()]
    torch.stack([output.square().mean() for output in outputs]).sum().backward()  # type: ignore[no-untyped-call]  # torch's own
    optimizer.step()
    optimizer.zero_grad()
    for output in leaves(model(*inputs)):
        if output.is_floating_point():
            output.square().mean().backward()  # type: ignore[no-untyped-call]  # torch's own
            break


def _export(lean: nn.Module, model: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """Export the cut network; what the uncut one cannot do either is no fault of the cut."""
    try:
        _exported(lean, inputs)
    except Exception as error:  # as above
        try:
            _exported(model, inputs)
        except Exception:  # as above
            return "neither before nor after"
        return _words(error)
    return "yes"


def _exported(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            export_onnx(model, inputs, Path(folder) / "model.onnx", metadata={})
        except EdgeleanError:  # a batch that is not free, or outputs of another kind
            torch.onnx.export(model, inputs, str(Path(folder) / "model.onnx"), dynamo=True, verbose=False)
