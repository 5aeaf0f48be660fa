"""What can be exported: the shelf ``export/targets``, one TOML file an export target."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from edgelean.board.document import Frozen, document_names, find_document, read_document
from edgelean.shelf import shelf


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
        What is written; a TensorRT engine is built from the ONNX file of the same precision.
    precision
        The precision inside the graph; inputs and outputs are FP32 always.
    opset
        Version of ONNX's operators. torch writes 18 natively, TensorRT reads up to 20 in every version from 10.0 on.
    file
        Name of the artifact in the bundle.
    """

    name: str
    title: str
    format: Literal["onnx", "tensorrt"]
    precision: Literal["fp32", "fp16"]
    opset: int = Field(ge=18, le=20)
    file: str = Field(pattern=r"^\w[\w.-]*$")
    tolerances: Tolerances


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
