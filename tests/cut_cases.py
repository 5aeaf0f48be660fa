"""Networks, plans and training steps with which a cut is compared with masking."""

from __future__ import annotations

import copy
import itertools

import torch
from torch import nn

from edgelean.shrink.cut import kept_of, tensors_of
from edgelean.shrink.followers import sliced
from edgelean.shrink.plan import Plan, Removal


def removing(units):
    """Return a plan that takes units out of the layers of a Sequential of linear layers and activations."""
    removals = []
    for layer, gone in units.items():
        removals += [Removal(f"{layer}.weight", 0, gone), Removal(f"{layer}.bias", 0, gone)]
        removals += [Removal(f"{layer + 2}.weight", 1, gone)]
    return Plan((), tuple(removals), {}, 0.0)


PLAN = removing({0: (1, 4, 7), 2: (0, 5)})


def network(widths=(6, 10, 8, 3)):
    torch.manual_seed(7)
    layers = itertools.chain.from_iterable((nn.Linear(a, b), nn.Tanh()) for a, b in itertools.pairwise(widths))
    return nn.Sequential(*list(layers)[:-1]).double()


def batch(step):
    torch.manual_seed(100 + step)
    return torch.randn(16, 6).double(), torch.randn(16, 3).double()


def loss_of(model, step):
    x, y = (part.to(next(model.parameters()).device) for part in batch(step))
    return (model(x) - y).square().mean()


def train(model, optimizers, steps, before_step=lambda: None):
    for step in steps:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss_of(model, step).backward()
        before_step()
        for optimizer in optimizers:
            optimizer.step()


def mask(model, optimizers, plan, *, gradients):
    """Set what a plan removes to zero: in gradients, or in parameters and all state of their shape."""
    named = dict(model.named_parameters(remove_duplicate=False))
    for removal in (each for each in plan.removals if each.tensor in named):
        parameter = named[removal.tensor]
        indices = torch.tensor(removal.indices, device=parameter.device)
        states = [
            v for each in optimizers for v in each.state.get(parameter, {}).values() if isinstance(v, torch.Tensor)
        ]
        for tensor in [parameter.grad] if gradients else [parameter.data, *states]:
            if tensor is not None and tensor.shape == parameter.shape:
                tensor.index_fill_(removal.dim, indices, 0)


def train_masked(model, optimizers, plan, steps):
    for step in steps:
        mask(model, optimizers, plan, gradients=False)
        train(model, optimizers, [step], lambda: mask(model, optimizers, plan, gradients=True))
    mask(model, optimizers, plan, gradients=False)


def difference(model, whole, plan):
    """Return how far a cut model is from what is left of an uncut one."""
    kept, left = kept_of(whole, plan), tensors_of(whole)
    pairs = [(tensor, sliced(left[name], kept.get(name, {}))) for name, tensor in tensors_of(model).items()]
    return max((a.detach() - b).abs().max().item() for a, b in pairs)


def twins(model, *others):
    """Return a second model with its own followers that are where the first ones are."""
    return copy.deepcopy((model, *others))
