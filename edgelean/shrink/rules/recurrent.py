"""LSTM, GRU and plain recurrent layers: the same hidden unit in every gate, layer and direction is one unit."""

from __future__ import annotations

import numpy as np

from edgelean.shrink.labels import Dimension, Line, Value
from edgelean.shrink.rules.call import Call, Flow, rule, sizes, unknown

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule(*GATES)
def _recurrent(call: Call) -> Flow:
    """Every layer and direction has one hidden size in PyTorch, so their units go together."""
    x, state, parameters = call.arguments[0], call.arguments[1], call.arguments[2]
    has_biases, layers, both_ways, batch_first = (call.arguments[i] for i in (3, 4, 7, 8))
    directions, plain_each = 2 if both_ways else 1, 4 if has_biases else 2
    each = len(parameters) // (layers * directions)
    if not isinstance(batch_first, bool) or each not in (plain_each, plain_each + 1):
        return unknown(call)
    gates = GATES[call.operator]
    first = parameters[0]
    unit = first.labels[0][: first.shape[0] // gates]
    fed_back: Line = unit if each == plain_each else parameters[each - 1].labels[0]  # an LSTM may project its output
    read: Dimension = x.labels[-1]
    for layer in range(layers):
        for direction in range(directions):
            start = (layer * directions + direction) * each
            _couple(call, parameters[start : start + plain_each], unit, gates, read, fed_back)
            if each > plain_each:
                call.labels.unify(fed_back, parameters[start + plain_each].labels[0], "")
                call.labels.unify(unit, parameters[start + plain_each].labels[1], "")
        read = np.concatenate([fed_back] * directions)
    kept = (fed_back, unit)
    for value, line in zip(state if isinstance(state, (list, tuple)) else [state], kept, strict=False):
        _enter_state(call, value, line)
    out = Value(call.shapes[0], (*x.labels[:-1], read))
    states = tuple(
        Value(shape, (None, *(None for _ in shape[1:-1]), line))
        for shape, line in zip(call.shapes[1:], kept, strict=False)
    )
    return Flow(
        (out, *states),
        "contract",
        rows=sizes(x, range(len(x.shape) - 1)),
        columns=sizes(first, (0,)),
        depth=sizes(parameters[1], (1,)),
        taps=2 * layers * directions,
    )


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _cell(call: Call) -> Flow:
    """One step of a recurrence: the input, the states, and the weights and biases of both."""
    x, states, parameters = call.arguments[0], call.arguments[1], call.tensors()
    parameters = [value for value in parameters[-4:] if value.shape[0] == parameters[-1].shape[0]]
    gates = GATES[call.operator.removesuffix("_cell")]
    unit = parameters[1].labels[1]
    _couple(call, parameters, unit, gates, x.labels[-1], unit)
    for state in states if isinstance(states, (list, tuple)) else [states]:
        _enter_state(call, state, unit)
    out = tuple(Value(shape, (*x.labels[:-1], unit)) for shape in call.shapes)
    rows, columns, depth = sizes(x, range(len(x.shape) - 1)), sizes(parameters[0], (0,)), sizes(parameters[1], (1,))
    return Flow(out, "contract", rows=rows, columns=columns, depth=depth, taps=2)


def _enter_state(call: Call, state: Value, unit: Dimension) -> None:
    """Unify the hidden units with those of a first state; its layers and samples stay."""
    for line in state.labels[:-1]:
        call.labels.freeze(line, "a layer or sample of the first state of a recurrence")
    call.labels.unify(unit, state.labels[-1], "the first state of a recurrence has no units")


def _couple(
    call: Call, parameters: list[Value], unit: Dimension, gates: int, read: Dimension, fed_back: Dimension
) -> None:
    """Unify the weights of one layer in one direction: inputs, hidden units, what is fed back, biases."""
    assert unit is not None
    everywhere = np.concatenate([unit] * gates)
    call.labels.unify(read, parameters[0].labels[1], "a recurrent layer reads a dimension without units")
    call.labels.unify(fed_back, parameters[1].labels[1], "")
    for parameter in parameters:
        call.labels.unify(everywhere, parameter.labels[0], "")
