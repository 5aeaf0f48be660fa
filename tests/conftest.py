"""Fixtures and paths that several tests share."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import settings

# Two threads that wait for each other on a busy machine are a hundred times slower than one.
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)

# The same code passes or fails alike wherever it is tested; HYPOTHESIS_PROFILE=search looks for new examples.
settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
