"""Fixtures and paths that several tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

# Two threads that wait for each other on a busy machine are a hundred times slower than one.
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def data_folder() -> Path:
    """The folder of the large data sets, named by EDGELEAN_DATA."""
    folder = os.environ.get("EDGELEAN_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("EDGELEAN_DATA does not name a folder with the data sets")
    return Path(folder)
