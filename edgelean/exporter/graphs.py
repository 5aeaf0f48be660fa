"""One ONNX file for every precision and runtime that is asked for, made from the FP32 file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgelean.exporter.fp16 import halved, products_to_fp16
from edgelean.exporter.int8 import quantised
from edgelean.exporter.search import Array, HeldOut
from edgelean.exporter.steps import step_name
from edgelean.exporter.targets import ExportTarget

Graphs = dict[str, Path]
"""The files of a model in one form, by the ``graph`` of the target that each is for."""


@dataclass(frozen=True)
class Samples:
    """What lower precisions are made with; nothing of the test split.

    Attributes
    ----------
    calibration
        Inputs of the training, from which ranges of activations are found: per batch a tuple of arrays.
    held_out
        What choices are judged by.
    """

    calibration: Sequence[Sequence[Array]]
    held_out: HeldOut


def lowered(whole: Path, targets: Sequence[ExportTarget], samples: Samples) -> tuple[Graphs, tuple[str, ...]]:
    """Return the files of a model, written beside the FP32 file ``whole``, and what a person should know of them.

    Raises
    ------
    InputError
        Nothing in the graph can be quantised, and a target asks for INT8.
    VerificationError
        A file is not valid ONNX.
    """
    files: Graphs = {}
    notes: list[str] = []
    for target in targets:
        out = files[target.graph] = whole if target.precision == "fp32" else whole.with_name(target.graph)
        if target.precision == "fp16":
            notes += halved(whole, out, target, samples.held_out).notes
        elif target.precision == "int8":
            notes += quantised(whole, out, target, samples.calibration, samples.held_out).notes
    return files, tuple(notes)


def lowered_steps(part: Path, targets: Sequence[ExportTarget]) -> tuple[Graphs, tuple[str, ...]]:
    """Return the files of a step form, written beside its FP32 file ``part``; there is none in INT8.

    See `lowered`. Errors of a state add up from step to step, and no range holds for sequences of any length.
    """
    files: Graphs = {}
    for target in targets:
        out = part if target.precision == "fp32" else part.with_name(step_name(target.graph))
        if target.precision == "fp16":
            products_to_fp16(part, out)
        if target.precision != "int8":
            files[target.graph] = out
    left = {target.precision for target in targets} & {"int8"}
    return files, ("There is no step form in INT8: what is rounded would add up from step to step.",) if left else ()
