"""Fixtures and paths that several tests share."""

from __future__ import annotations

import os

import pytest
import torch

# Two threads that wait for each other on a busy machine are a hundred times slower than one.
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
