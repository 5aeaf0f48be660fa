"""Torch-Pruning on the same networks, without configuration, judged by the same law.

Runs in a process of its own, since it does not always return: one JSON line per network. The final layer is left out
and outputs that are no tensor are flattened for it, as its documentation asks; nothing else is said about the network.

What it removed is found out from the result: every weight is replaced by its own number, so that what is left of a
tensor says which rows and columns have gone. The cut model then has to compute what the masked one does.
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo_networks.judge import build
from benchmarks.zoo_networks.network import Network
from edgelean.shrink import law
from edgelean.shrink.plan import Plan, Removal
from edgelean.shrink.reference import double, doubled, leaves
from edgelean.shrink.trace import trace


def try_peer(network: Network) -> dict[str, Any]:
    """Return ``{"name", "left", "verdict"}``: the share of the parameters that is left, and what became of it."""
    model, inputs = build(network)
    try:
        lean, plan = _pruned(model, inputs)
        left = sum(p.numel() for p in lean.parameters()) / sum(p.numel() for p in model.parameters())
        with torch.no_grad():
            found = [double(x) for x in leaves(lean.double()(*doubled(inputs)))]
        reference = law.Reference(model, trace(model, inputs), inputs)
        error = law.deviation(reference.outputs(plan), found)
        verdict = "exact" if error < reference.tolerance else f"wrong by {error:.1g}"
    except Exception as error:  # whatever it raises is the result
        return {
            "name": network.name,
            "left": 1.0,
            "verdict": f"fails: {type(error).__name__}: {str(error).partition(chr(10))[0]}"[:120],
        }
    return {"name": network.name, "left": left, "verdict": verdict}


def _pruned(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[nn.Module, Plan]:
    import torch_pruning  # type: ignore[import-not-found,import-untyped,unused-ignore]  # an optional dependency of the benchmark

    numbered, whole = copy.deepcopy(model), {}
    start = 1
    values = [torch.zeros(1)]
    with torch.no_grad():
        for name, tensor in _floats(numbered):
            whole[name] = tuple(tensor.shape)
            values.append(tensor.detach().flatten().clone())
            tensor.data = torch.arange(start, start + tensor.numel(), dtype=torch.float64).view(tensor.shape)
            start += tensor.numel()
    numbered.double()
    pruner = torch_pruning.pruner.BasePruner(
        numbered, doubled(inputs), importance=torch_pruning.importance.RandomImportance(), pruning_ratio=0.5,
        ignored_layers=list(_head(numbered, inputs)),
        output_transform=lambda output: sum(x.sum() for x in leaves(output)),
    )  # fmt: skip
    pruner.step()
    flat, starts = torch.cat(values), dict(zip(whole, _starts(whole.values()), strict=True))
    removals: list[Removal] = []
    with torch.no_grad():
        for name, tensor in _floats(numbered):
            if name not in whole:
                raise ValueError(f"{name} is no longer shared")
            numbers = tensor.detach().long()
            removals += _removals(name, numbers - starts[name], whole[name])
            tensor.data = flat[numbers]
    numbered.zero_grad()
    return numbered, Plan((), tuple(removals), {}, 0.0)


def _floats(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.numel():
            yield name, tensor


def _starts(shapes: Any) -> Iterator[int]:
    start = 1
    for shape in shapes:
        yield start
        start += int(torch.Size(shape).numel())


def _removals(name: str, numbers: Tensor, shape: tuple[int, ...]) -> Iterator[Removal]:
    for dim, size in enumerate(shape):
        behind = int(torch.Size(shape[dim + 1 :]).numel())
        kept = set((numbers.div(behind, rounding_mode="floor") % size).flatten().tolist())
        if len(kept) < size:
            yield Removal(name, dim, tuple(i for i in range(size) if i not in kept))


def _head(model: nn.Module, inputs: tuple[Tensor, ...]) -> Sequence[nn.Module]:
    """Return the last layer that is as wide as the output."""
    with torch.no_grad():
        widths = {size for output in leaves(model(*doubled(inputs))) for size in output.shape[1:]}
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))]
    return [layer for layer in layers if layer.weight.shape[0] in widths][-1:]


def main(names: list[str]) -> None:
    """Try the networks of these names."""
    from benchmarks.zoo_networks.all import all_networks

    warnings.filterwarnings("ignore")
    networks = {network.name: network for network in all_networks()[0]}
    for name in names:
        print(json.dumps({"starts": name}), flush=True)
        print(json.dumps(try_peer(networks[name])), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
