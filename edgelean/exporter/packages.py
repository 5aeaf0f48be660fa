"""Parts of onnxruntime that are imported in a way of their own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def tools_of_onnxruntime() -> Iterator[None]:
    """Let ``onnxruntime.transformers`` and ``onnxruntime.quantization`` be imported here.

    They look for one another as if they were modules on their own, so the first of them puts its folder on the path of
    everybody. Here the folder is on it for a while only.
    """
    import onnxruntime

    before = list(sys.path)
    sys.path.append(str(Path(onnxruntime.__file__).parent / "transformers"))
    try:
        yield
    finally:
        sys.path[:] = before
