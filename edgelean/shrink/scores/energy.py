"""The energy that flows through a unit, seen by the loss: the price in nats of removing it. The default score.

A layer that reads units and can be refitted loses what the kept units do not tell of the removed ones, their
conditional covariance (controllability), times the Fisher information of the loss at what it reads (observability),
halved. A layer that is not refitted loses the variance instead.

Some readers are never called as a module (the hidden weights of an LSTM). What they read is not seen, but what its
removal does to first order is: the weights that read a unit times their gradients, summed. Its mean square over batches
of n samples is one n-th of that over samples.

References
----------
Theis, Korshunova, Tejani, Huszar: Faster gaze prediction with dense networks and Fisher pruning, 2018.
Lall, Marsden, Glavaski: Empirical model reduction of controlled nonlinear systems, IFAC 1999.
Hassibi, Stork: Second order derivatives for network pruning: Optimal Brain Surgeon, NIPS 1992.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgelean.nn import Selective
from edgelean.nn.attention import FreeAttention
from edgelean.shrink.axes import Axis, Slot
from edgelean.shrink.scores.collect import Scores, slot_name
from edgelean.shrink.scores.elimination import Reader, eliminate
from edgelean.shrink.scores.flow import Flow
from edgelean.shrink.scores.places import CONVOLUTIONS
from edgelean.shrink.scores.protocol import Running
from edgelean.shrink.scores.selective import reader_of_states
from edgelean.shrink.states import parameter_in


class Energy(Scores):
    """Half the energy that flows through a unit, after the refit, weighted by the Fisher information; in nats."""

    def unit_prices(self, axis: Axis, model: nn.Module) -> Tensor | None:
        """Return what the removal of each unit alone costs after the refit, ``[size]`` in nats; None if not known."""
        found = self._parts(axis, model)
        return None if found is None else sum((reader.prices() for reader in found[0]), found[1])

    def removal_prices(self, axis: Axis, model: nn.Module) -> Running | None:
        """Return the order in which units go, the cheapest given those that went before, and the summed prices."""
        if axis.kind != "channels":
            return self.whole_prices(axis, model)
        found = self._parts(axis, model)
        return None if found is None else eliminate(*found)

    def _parts(self, axis: Axis, model: nn.Module) -> tuple[list[Reader], Tensor] | None:
        """Return the readers that are refitted, and what each unit costs at all others, ``[size]``."""
        fixed = torch.zeros(axis.size, dtype=torch.float64)
        readers, seen = [], False
        for path, slot in axis.readers:
            places = torch.from_numpy(axis.slots[slot])
            reader = self.reader(path, model, places)
            if reader is not None:
                readers.append(reader)
                continue
            price = self.element_prices(path, slot)
            if price is not None:
                seen = True
                fixed += price.double().cpu()[places].sum(1)
        return (readers, fixed) if readers or seen else None

    def reader(self, path: str, model: nn.Module, places: Tensor) -> Reader | None:
        """Return a layer that can be refitted as far as it has been observed."""
        module, flow = model.get_submodule(path), self.flows.get(path, Flow())
        if isinstance(module, Selective):
            sum_reader = self.flows.get(parameter_in(path, module.states_read_by), Flow())
            return reader_of_states(module, flow, sum_reader, places)
        parts = flow.parts()
        if parts is None or flow.doubt is None or getattr(module, "groups", 1) != 1:
            return None
        refitted = isinstance(module, (nn.Linear, FreeAttention, *CONVOLUTIONS))
        return Reader.of(parts, float(flow.doubt), places) if refitted else None

    def element_prices(self, path: str, slot: Slot) -> Tensor | None:
        """Return the price of each element that a reader reads, in nats, if it is not refitted."""
        energy = self.flows.get(path, Flow()).energy()
        if energy is not None:
            return energy
        slope = self.slopes.get(slot_name(slot))
        return None if slope is None else 0.5 * slope
