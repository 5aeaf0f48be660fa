"""What can be exported: the shelf ``export/targets``, one TOML file an export target."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field

from edgelean.board import Precision
from edgelean.board.document import Frozen, document_names, find_document, read_document
from edgelean.shelf import shelf

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_FILE = r"^\w[\w.-]*\.\w+$"


class Tolerances(Frozen):
    """How far an artifact may be from the trained model; every figure is a share, 0.01 for one percent.

    Attributes
    ----------
    rel_l2
        Largest relative L2 error of the outputs of any sample.
    agreement
        Smallest share of samples whose winning class is the same, near ties left out.
    near_tie
        A winner that leads by less than this share of the L2 norm of the sample's outputs may lose its place.
    metric_drop
        Largest drop of the task metric, near ties left out; in the metric's own unit.
    """

    rel_l2: float = Field(gt=0)
    agreement: float = Field(gt=0, le=1)
    near_tie: float = Field(ge=0)
    metric_drop: float = Field(ge=0)


class ExportTarget(Frozen):
    """One kind of artifact: a format in a precision, and when it counts as good.

    Attributes
    ----------
    name
        The name of its file on the shelf.
    title
        What a person reads.
    format
        What is written; a TensorRT engine is built from the ONNX file ``graph``.
    precision
        The precision inside the graph; inputs and outputs are FP32 always.
    opset
        Version of ONNX's operators. torch writes 18 natively, TensorRT reads up to 20 in every version from 10.0 on.
    file
        Name of the artifact in the bundle.
    graph
        Name of the ONNX file that holds the graph: the artifact itself, or what the engine is built from.
    """

    name: str
    title: str
    format: Literal["onnx", "tensorrt"]
    precision: Precision
    opset: int = Field(ge=18, le=20)
    file: str = Field(pattern=_FILE)
    graph: str = Field(pattern=_FILE)
    tolerances: Tolerances


def graph_targets(targets: Iterable[ExportTarget]) -> tuple[ExportTarget, ...]:
    """Return one target for every ONNX file that targets need, FP32 first: what that file is held against.

    It is the shelf's target of ONNX where one writes the file, else the target that asked for it.
    """
    shipped = {target.graph: target for target in map(load_target, target_names()) if target.format == "onnx"}
    found = {target.graph: shipped.get(target.graph, target) for target in targets}
    return tuple(sorted(found.values(), key=lambda target: (PRECISIONS.index(target.precision), target.graph)))


def graph_target(precision: Precision, kind: Literal["cpu", "gpu"]) -> ExportTarget:
    """Return the target whose ONNX file runs in a precision on a processor, or in TensorRT on a GPU."""
    if kind == "gpu" and precision == "int8":
        return load_target("tensorrt-int8")
    return load_target(f"onnx-{precision}")


def target_names() -> tuple[str, ...]:
    """Return the names of the export targets that ship with edgelean, sorted."""
    return document_names(_folder())


def load_target(name_or_path: str | Path) -> ExportTarget:
    """Return an export target by its name, or by the path of a TOML file of one's own.

    Raises
    ------
    MissingError
        There is no such export target; the message has the nearest names.
    InputError
        The file is malformed: ``FILE: key: what is allowed``.
    """
    path = find_document("export target", _folder(), name_or_path)
    return read_document(ExportTarget, path, {"name": path.stem})


def _folder() -> Path:
    return shelf("export") / "targets"
