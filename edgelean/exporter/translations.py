"""What torch's exporter knows of ONNX, read once for a process instead of once for every file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@contextmanager
def read_once() -> Iterator[None]:
    """Let torch.onnx.export use the translations of its operators that an earlier export has read.

    It parses the sources of some five hundred functions anew for every file, which takes a third of the export of a
    small network. There is no public way to hand it a registry, so its own reader is replaced while it exports; other
    exports in the same process get what they got before.
    """
    from torch.onnx._internal.exporter import _registration

    kind: Any = _registration.ONNXRegistry
    own, read = vars(kind)["from_torchlib"], kind.from_torchlib
    kind.from_torchlib = staticmethod(lambda opset_version: _registry(read, opset_version))
    try:
        yield
    finally:
        kind.from_torchlib = own


@cache
def _registry(read: Callable[..., Any], opset: int) -> Any:
    return read(opset_version=opset)
