"""Prove how blocks can be taken out: each is, on a probe, and compared with the graph in which its branch is zero.

Blocks that repeat are tried once: those whose modules differ in digits only share the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from edgelean.errors import LawError
from edgelean.shrink import law
from edgelean.shrink.axes import Anatomy, Axis, Refusal
from edgelean.shrink.blocks import Block, Way
from edgelean.shrink.bypass import Detour
from edgelean.shrink.cut import tensors_of
from edgelean.shrink.parts_law import Reference
from edgelean.shrink.plan import AxisCut, Plan

NO_MODULE = "its layers are not in modules of their own, or are called more than once"


@dataclass(frozen=True)
class BlockProof:
    """What has been found out about the blocks of a model; it holds after cuts, too.

    Attributes
    ----------
    detours
        By the name of a block, the modules to replace.
    refused
        By the name of a block, why it is left alone.
    """

    detours: Mapping[str, tuple[Detour, ...]] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def applied(self, anatomy: Anatomy) -> tuple[dict[str, Axis], dict[str, tuple[str, str]], list[Refusal]]:
        """Return the blocks of an anatomy that can go, as axes; which tensors are then the same; and the refusals."""
        axes, same, refusals = {}, {}, []
        for block in anatomy.blocks:
            detours = self.detours.get(block.name, ())
            way = next((way for way in block.ways if way.modules and way.modules == _paths(detours)), None)
            if way is None:
                why = self.refused.get(block.name, "it is not what it was when it was tried")
                refusals.append(Refusal(block.name, why))
                continue
            axes[block.name] = Axis(block.name, "blocks", 1, {}, detours=detours)
            same[block.name] = (way.result, block.stream)
        return axes, same, refusals


def prove_blocks(
    model: nn.Module, blocks: Iterable[Block], reference: Reference, probe: tuple[Tensor, ...]
) -> BlockProof:
    """Find out how blocks can be taken out of the model's code.

    Parameters
    ----------
    model
        Left as it is.
    reference
        Of the model, for the probe.
    """
    blocks = tuple(blocks)
    parts = _returned(model, {path for block in blocks for way in block.ways for path in way.modules}, probe)
    answers: dict[object, int | str] = {}
    detours, refused = {}, {}
    for block in blocks:
        ways = [_detours(way, parts) for way in block.ways]
        key = _pattern(block.name), tuple((way.kind, tuple(map(_pattern, way.modules))) for way in block.ways)
        if key not in answers:
            answers[key] = _tried(model, block, ways, reference, probe)
        answer = answers[key]
        if isinstance(answer, str):
            refused[block.name] = answer
        else:
            detours[block.name] = ways[answer]
    return BlockProof(detours, refused)


def _tried(
    model: nn.Module,
    block: Block,
    ways: list[tuple[Detour, ...]],
    reference: Reference,
    probe: tuple[Tensor, ...],
) -> int | str:
    """Return which of the ways to take out a block obeys the law, or why none does."""
    reason = NO_MODULE
    expected: list[Tensor] = []
    for index, detours in enumerate(ways):
        plan = Plan((AxisCut(block.name, "blocks", 1, 0, ()),), (), {}, 0.0, detours=detours)
        try:
            expected = expected or reference.outputs(plan)
            law.check(expected, law.cut_outputs(model, plan, probe), reference.tolerance)
        except LawError as error:
            reason = str(error)
        else:
            return index
    return reason


def _detours(way: Way, parts: Mapping[str, int]) -> tuple[Detour, ...]:
    return tuple(Detour(path, way.kind, parts.get(path, 0)) for path in way.modules)


def _paths(detours: Iterable[Detour]) -> tuple[str, ...]:
    return tuple(detour.path for detour in detours)


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _returned(model: nn.Module, paths: Iterable[str], probe: tuple[Tensor, ...]) -> dict[str, int]:
    """Run a model once; return for each of some modules the length of the tuple that it gives, 0 for all else."""
    parts: dict[str, int] = {}

    def noting(path: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            parts[path] = len(output) if type(output) is tuple else 0

        return hook

    handles = [model.get_submodule(path).register_forward_hook(noting(path)) for path in paths]
    try:
        if handles:
            law.outputs(model, tensors_of(model), probe)
    finally:
        for handle in handles:
            handle.remove()
    return parts
