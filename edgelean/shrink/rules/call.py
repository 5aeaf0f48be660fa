"""What a rule sees of one operator, and what it says about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from edgelean.shrink.labels import Dimension, Labels, Value, plain

Kind = Literal["contract", "pointwise", "reduce", "move", "free"]
Extent = tuple[tuple[int, Dimension], ...]
"""Dimensions whose sizes multiply, each with the labels that may be cut out of it."""


@dataclass(frozen=True)
class Flow:
    """What one operator does: its outputs, how it is launched, and the sizes of its contraction if it has one.

    Attributes
    ----------
    rows, columns, depth
        Output positions, output channels, and input channels of one group.
    taps
        Positions of the kernel.
    over
        Dimensions along which it takes statistics: those of the units that are left, once some are gone.
    """

    outputs: tuple[Value, ...]
    kind: Kind
    rows: Extent = ()
    columns: Extent = ()
    depth: Extent = ()
    taps: int = 1
    over: tuple[Dimension, ...] = ()
    unknown: bool = False


@dataclass(frozen=True)
class Call:
    """One operator of the graph.

    Attributes
    ----------
    arguments, named
        Its arguments, tensors as values, by position and by name.
    shapes
        Of the tensors that it returns.
    """

    labels: Labels
    operator: str
    arguments: tuple[Any, ...]
    shapes: tuple[tuple[int, ...], ...]
    named: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self) -> list[Value]:
        """Return every tensor among the arguments, lists of tensors included."""
        flat: list[Value] = []
        for argument in (*self.arguments, *self.named.values()):
            if isinstance(argument, Value):
                flat.append(argument)
            elif isinstance(argument, (list, tuple)):
                flat.extend(item for item in argument if isinstance(item, Value))
        return flat

    def argument(self, index: int, default: Any = None, name: str = "") -> Any:
        """Return an argument by position or name, or the operator's default."""
        if index < len(self.arguments):
            return self.arguments[index]
        return self.named.get(name, default)

    def result(self, lines: Sequence[Dimension], kind: Kind) -> Flow:
        """Return a flow with one output that has these labels."""
        return Flow((Value(self.shapes[0], tuple(lines)),), kind)

    def labelled(self) -> Call:
        """Return the call with labels of their own in tensors of one number: their units may go with what they meet."""
        named = {key: self._with_labels(argument) for key, argument in self.named.items()}
        return replace(self, arguments=tuple(self._with_labels(argument) for argument in self.arguments), named=named)

    def _with_labels(self, argument: Any) -> Any:
        if isinstance(argument, Value) and argument.uniform:
            lines = tuple(self.labels.fresh(size) if size > 1 else None for size in argument.shape)
            return Value(argument.shape, lines, argument.constant)
        if isinstance(argument, (list, tuple)):
            return [self._with_labels(item) for item in argument]
        return argument


Rule = Callable[[Call], Flow]
RULES: dict[str, Rule] = {}


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operators by their names without overload."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, lambda call: function(call.labelled())))
        return function

    return register


def rule_for_uniform(*operators: str) -> Callable[[Rule], Rule]:
    """Register a rule that knows of tensors of one number itself."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return register


def unknown(call: Call) -> Flow:
    """Leave alone whatever meets an operator without a rule."""
    for value in call.tensors():
        call.labels.freeze_all(value, f"{call.operator} has no rule")
    return Flow(tuple(plain(shape) for shape in call.shapes), "reduce", unknown=True)


def sizes(value: Value, places: Sequence[int]) -> Extent:
    """Return some dimensions of a tensor as sizes that multiply."""
    return tuple((value.shape[place], value.labels[place]) for place in places)


def summed_dim(operator: str, place: int, rank: int) -> int | None:
    """Return the dimension of a weight that an operator sums over, if it is one that reads.

    Parameters
    ----------
    place
        Which argument the weight is, lists counted flat.
    rank
        How many dimensions the weight has.
    """
    if operator.startswith("conv_transpose"):
        return 0 if place == 1 else None
    if operator == "linear" or operator.startswith("conv"):
        return 1 if place == 1 else None
    if operator in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        return 1
    if operator in ("matmul", "mm", "bmm", "addmm", "baddbmm", "_grouped_mm", "grouped_mm_fallback"):
        return rank - 2 if place == (2 if operator.startswith(("add", "badd")) else 1) else None
    return None
