"""What is learned: the digits of scikit-learn and shortened images of MNIST, both pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from edgelean.recipe import Data, Recipe
from edgelean.recipes import digits_sequence, smnist

TRAINED, VALIDATED = 12_000, 2_000
"""Images of MNIST's training split that the shortened task trains on and validates with, the first and the last."""

TOLERANCES = (0.01, 0.03, 0.08, 0.15)


@dataclass(frozen=True)
class Task:
    """A recipe, and how large and how long it is here.

    Attributes
    ----------
    make
        The network with so many states.
    states
        Of the full size.
    tolerances
        Of the four rows, the smallest first.
    """

    name: str
    recipe: Recipe
    make: Callable[[int], nn.Module]
    states: int
    tolerances: tuple[float, float, float, float]

    def with_states(self, states: int) -> Recipe:
        """Return the recipe of a network with so many states."""
        return replace(self.recipe, model=lambda: self.make(states))


def shortened_mnist() -> Data:
    """Return images at half their resolution, 14 x 14 means of four pixels: 196 steps; the whole test split."""
    whole = smnist.load_data()
    return Data(
        _halved(whole.train, slice(None, TRAINED)),
        _halved(whole.validation, slice(-VALIDATED, None)),
        _halved(whole.test, slice(None)),
    )


def _halved(split: object, chosen: slice) -> TensorDataset:
    assert isinstance(split, TensorDataset)
    pixels, digits = (tensor[chosen] for tensor in split.tensors)
    small: Tensor = functional.avg_pool2d(pixels.reshape(-1, 1, 28, 28), 2)
    return TensorDataset(small.reshape(-1, 196, 1).clone(), digits.clone())


def tasks(quick: bool) -> tuple[Task, Task]:
    """Return both tasks: 64 steps of 32 features, and 196 steps of 8; 256 states at full size."""
    digits = Task(
        "digits-sequence",
        digits_sequence.recipe,
        lambda states: digits_sequence.sequence_net(states=states),
        digits_sequence.STATES,
        TOLERANCES,
    )
    epochs = 3 if quick else 4
    images = Task(
        f"smnist-196, {epochs} epochs",
        replace(smnist.recipe, name="smnist-196", data=shortened_mnist, epochs=epochs),
        lambda states: smnist.pixel_net(states=states),
        smnist.STATES,
        TOLERANCES,
    )
    return digits, images
