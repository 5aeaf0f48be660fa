"""What the states of a selective layer are worth.

Its recurrence depends on the input, so there is no system to balance. But what every state adds to what the next layer
reads is known at every time step, and so is the Fisher information of the loss there. One matrix for all pairs of
states, summed over the inner features, then says what any set of them costs in nats: the pooled energy that flows
through them. A state goes from all inner features at once, because what the input writes into it, and what is read from
it, is the same for all.

References
----------
Lall, Marsden, Glavaski: Empirical model reduction of controlled nonlinear systems, IFAC 1999.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgelean.nn import Selective
from edgelean.shrink.scores.elimination import Reader
from edgelean.shrink.scores.flow import Flow


def reader_of_states(layer: Selective, seen: Flow, read: Flow, places: Tensor) -> Reader | None:
    """Return the sum over the states of a layer as the reader of them that it is.

    It is refitted when what reads the states that stay is scaled.

    Parameters
    ----------
    seen
        What has been observed of the layer: its inputs.
    read
        What has been observed of what reads the sum over the states.
    places
        Which state each unit is, ``[units, 1]``.

    Returns
    -------
    Reader
        None while too little has been observed.
    """
    if seen.inputs is None or read.summed is None or read.fisher is None or read.size is None:
        return None
    parts = energies(layer, seen.inputs, read.summed.double(), read.loose().double())
    count = seen.inputs.shape[0] * seen.inputs.shape[1]
    return Reader.of([(part.cpu(), torch.ones_like(part).cpu()) for part in parts], 1 / count, places)


@torch.no_grad()
def energies(layer: Selective, inputs: Tensor, summed: Tensor, loose: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted energies of pairs of states in the means over each sample, and in what differs within it.

    Parameters
    ----------
    inputs
        What the layer reads, ``[batch, time, width]``.
    summed
        Fisher information of the loss at a move that is the same at all times, ``[inner, inner]`` or ``[inner]``.
    loose
        The same at moves that average out over a sample, ``[inner]``.

    Returns
    -------
    tuple
        Two matrices ``[states, states]`` in float64. Half the sum of a block is the price of the states in it.
    """
    total, whole = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for added in layer.through_states(inputs):
        now = added.double()
        total = total.to(now.device) + now
        whole = whole.to(now.device) + torch.einsum("bin,i,bim->nm", now, loose, now)
    samples, time = inputs.shape[:2]
    mean = total / time
    coupled = torch.diag(summed) if summed.ndim == 1 else summed
    between = torch.einsum("bin,ij,bjm->nm", mean, coupled, mean) / samples
    within = whole / samples / time - torch.einsum("bin,i,bim->nm", mean, loose, mean) / samples
    return between, within
