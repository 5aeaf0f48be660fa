"""State space layers: what a model is built from when its states are to shrink by balanced truncation."""

from edgelean.nn.blocks import Bidirectional, SequenceBlock, SequenceClassifier, SequenceRegressor, StepForm
from edgelean.nn.lru import LRU
from edgelean.nn.mamba import Mamba
from edgelean.nn.s4d import S4D
from edgelean.nn.s5 import S5
from edgelean.nn.system import DiagonalSystem, Selective, StateSpace, check_poles

__all__ = [
    "LRU",
    "S4D",
    "S5",
    "Bidirectional",
    "DiagonalSystem",
    "Mamba",
    "Selective",
    "SequenceBlock",
    "SequenceClassifier",
    "SequenceRegressor",
    "StateSpace",
    "StepForm",
    "check_poles",
]
