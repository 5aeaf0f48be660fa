"""How much the loss knows: the Fisher information of the labels that the model believes in.

Squared gradients of the labels of the training are the *empirical* Fisher information. It vanishes as the model learns
its training set by heart, long before the loss stops caring for what the model computes. The Fisher information itself
takes the labels from the model. Where the loss is a softmax cross entropy, the gradient at the logits gives that away:
it is the probabilities less one at the label, times a scale. What a sample's squared gradients have to be multiplied
with is then known, and so is the scale of the loss (a mean over tokens, a loss that is divided for the accumulation of
gradients, a gradient scaler).

References
----------
Kunstner, Balles, Hennig: Limitations of the empirical Fisher approximation for natural gradient descent, NeurIPS 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MISMATCH = 0.02
"""Relative distance up to which a gradient is that of a cross entropy; half precision needs most of it."""

LARGEST_WEIGHT = 1e6


@dataclass(frozen=True)
class Sight:
    """How squared gradients of a batch become Fisher information.

    Attributes
    ----------
    samples
        Samples of the batch.
    factor
        What the sum of the squared gradients over the batch is multiplied with.
    weights
        What the squared gradients of each sample are multiplied with before, ``[samples]``; None for 1.
    overall
        The mean of the weights, where samples cannot be told apart.
    """

    samples: int
    factor: float
    weights: Tensor | None = None
    overall: float = 1.0

    def summed(self, energy: Tensor) -> Tensor:
        """Return the Fisher information from squared gradients per sample and feature, ``[samples, features]``."""
        return self._each(energy) @ energy

    def weighted(self, gradients: Tensor) -> Tensor:
        """Return gradients per sample, ``[samples, features]``, whose products with themselves add up to it."""
        return self._each(gradients)[:, None] * gradients

    def _each(self, like: Tensor) -> Tensor:
        if self.weights is None or len(self.weights) != len(like):
            return like.new_full((len(like),), self.factor * self.overall)
        return self.weights.to(like) * self.factor


def of_labels(samples: int) -> Sight:
    """Return what makes the empirical Fisher information, of a loss that is a mean over the samples."""
    return Sight(samples, float(samples))


def of_cross_entropy(logits: Tensor, gradient: Tensor) -> Sight | None:
    """Return what makes the Fisher information of a softmax cross entropy; None for every other loss.

    Parameters
    ----------
    logits, gradient
        ``[samples, classes]``, ``[samples, tokens, classes]``, or ``[samples, classes, height, width]``, and the
        gradient of the loss there. Tokens without a gradient were ignored by the loss.
    """
    if logits.ndim < 2 or not logits.is_floating_point():
        return None
    dim = 1 if logits.ndim == 4 else -1
    given, seen = logits.detach().float().movedim(dim, -1), gradient.detach().float().movedim(dim, -1)
    samples, classes = len(given), given.shape[-1]
    given, seen = given.reshape(samples, -1, classes), seen.reshape(samples, -1, classes)
    counted = seen.abs().amax(-1) > 0
    if classes < 2 or not bool(counted.any()):
        return None
    believed = torch.softmax(given, -1)
    surprise = believed.scatter_add(-1, seen.argmin(-1, keepdim=True), -torch.ones_like(believed[..., :1]))
    surprise = surprise * counted[..., None]
    scale = (seen * surprise).sum() / surprise.square().sum()
    if not bool((seen - scale * surprise).norm() <= MISMATCH * seen.norm()):
        return None
    expected = ((1 - believed.square().sum(-1)) * counted).sum(-1)
    found = surprise.square().sum((-1, -2))
    weights = (expected / found.clamp_min(torch.finfo(torch.float32).tiny)).clamp_max(LARGEST_WEIGHT)
    overall = float(expected.sum() / found.sum())
    return Sight(samples, float(1 / (scale.square() * counted.sum())), weights, overall)
