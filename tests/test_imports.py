"""Importing is inert: nothing heavy is loaded before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import edgelean

HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "pynvml",
    "codecarbon",
    "matplotlib",
    "sklearn",
    "tensorrt",
    "tensorrt_rtx",
    "pydantic",
)


@pytest.mark.parametrize("module", ["edgelean", "edgelean.cli"])
def test_importing_loads_nothing_heavy(module):
    script = f"import {module}, sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("name", edgelean.__all__)
def test_every_public_name_can_be_had(name):
    assert getattr(edgelean, name).__name__ == name


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'prune'"):
        edgelean.prune  # noqa: B018 (asking for it is the test)
