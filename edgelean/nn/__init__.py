"""State space layers: what a model is built from when its states are to shrink by balanced truncation."""

from edgelean.nn.lru import LRU, LRUBlock
from edgelean.nn.system import DiagonalSystem

__all__ = ["LRU", "DiagonalSystem", "LRUBlock"]
