"""The random numbers of a training: all three sources of them, seeded together, kept, and put back."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

NUMPY_SEEDS = 2**32


def seed(number: int) -> None:
    """Seed the global random numbers of torch, numpy and Python, which data and layers may draw from."""
    torch.manual_seed(number)
    random.seed(number)
    np.random.seed(number % NUMPY_SEEDS)  # noqa: NPY002 -- the generator that people's transforms draw from


def seed_loader(loader: DataLoader[Any], number: int) -> None:
    """Seed the generators that a loader brings along, so that the order of an epoch follows from its number."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    for holder in (loader, loader.sampler, batch_sampler, getattr(batch_sampler, "sampler", None)):
        generator = getattr(holder, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(number)


def states() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the states of all global generators, as named tensors and plain values."""
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 -- as above
    numpy = {**legacy, "state": {"pos": legacy["state"]["pos"]}}
    keys = torch.from_numpy(legacy["state"]["key"].astype(np.int64))
    tensors = {"torch": torch.get_rng_state(), "python": torch.tensor(words), "numpy": keys}
    if torch.cuda.is_available():
        tensors |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return tensors, {"python": [version, gauss], "numpy": numpy}


def put_back(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Give all global generators the states that `states` returned; those of a GPU that is not here are left out."""
    version, gauss = values["python"]
    keys = tensors["numpy"].numpy().astype(np.uint32)
    torch.set_rng_state(tensors["torch"])
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    state = {**values["numpy"], "state": {**values["numpy"]["state"], "key": keys}}
    np.random.set_state(state)  # noqa: NPY002 -- as above
    for index in range(torch.cuda.device_count()):
        if f"cuda{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda{index}"], index)
