"""The board as a formula: nothing runs, the cost model answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgelean.board import Board, Precision
from edgelean.board.cost import Cost, Operator, predict
from edgelean.reading import Figure, Provenance, Reading
from edgelean.target.candidate import Candidate


@dataclass(frozen=True)
class ModelledTarget:
    """The cost model of a board in the place of the board.

    Attributes
    ----------
    board
        The board that is meant.
    precision, batch, percentile
        As the profile wants them; the cost model knows no spread, so every percentile is the same.
    """

    board: Board
    precision: Precision
    batch: int
    percentile: float = 50
    name: str = "modelled"
    provenance: Provenance = Provenance.MODELLED

    def read(self, candidate: Candidate) -> Reading:
        """Return what the cost model says, with its guesses named in the method."""
        cost = self.predict(candidate.operators)
        return Reading(
            latency=modelled_figure(cost.latency_ms, "ms", self.board, cost),
            energy=modelled_figure(cost.energy_mj, "mJ", self.board, cost),
            batch=self.batch,
            percentile=self.percentile,
            conditions={"precision": self.precision},
        )

    def close(self) -> None:
        """Nothing is held."""

    def predict(self, operators: Iterable[Operator]) -> Cost:
        """Return the predicted cost on the board."""
        return predict(operators, self.board, self.precision, self.batch)


def modelled_figure(value: float, unit: str, board: Board, cost: Cost) -> Figure:
    """Return a figure of the cost model, which has no interval."""
    method = "; ".join((f"cost model of {board.title}, nothing was measured", *cost.notes))
    return Figure(value, value, value, unit, Provenance.MODELLED, method)
