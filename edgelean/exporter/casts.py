"""Casts that a converter to FP16 puts where nothing computes in FP16."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

_DOWN, _UP = ("graph_input_cast", "_cast_to_fp16_node"), ("graph_output_cast", "_cast_to_fp32_node")
"""How onnxruntime's converter begins and ends the names of the casts that it inserts."""


def without_detours(proto: ModelProto) -> ModelProto:
    """Take out the casts to FP16 and back between two values of FP32; the model is changed in place and returned.

    A value that is too large for FP16 would not survive them, however many operators stay in FP32.
    """
    graph = proto.graph
    renamed, dropped = _detours(graph)
    nodes = [node for index, node in enumerate(graph.node) if index not in dropped]
    for node in nodes:
        node.input[:] = [_followed(name, renamed) for name in node.input]
        node.output[:] = [_followed(name, renamed) for name in node.output]
    read = {name for node in nodes for name in _read_by(node)} | {value.name for value in graph.output}
    kept = [node for node in nodes if not _is_inserted(node, _DOWN) or node.output[0] in read]
    del graph.node[:]
    graph.node.extend(kept)
    return proto


def _detours(graph: GraphProto) -> tuple[dict[str, str], set[int]]:
    """Return which values are the same as others, and the places of the casts back to FP32 that made them."""
    inputs, ends = {value.name for value in graph.input}, {value.name for value in graph.output}
    down = {node.output[0]: node.input[0] for node in graph.node if _is_inserted(node, _DOWN)}
    renamed: dict[str, str] = {}
    dropped = set()
    for index, node in enumerate(graph.node):
        if not _is_inserted(node, _UP) or node.input[0] not in down:
            continue
        origin, result = down[node.input[0]], node.output[0]
        if result not in ends:
            renamed[result] = origin
        elif origin not in inputs:
            renamed[origin] = result  # an output of the graph has to keep its name
        else:
            continue
        dropped.add(index)
    return renamed, dropped


def _followed(name: str, renamed: Mapping[str, str]) -> str:
    while name in renamed:
        name = renamed[name]
    return name


def _is_inserted(node: NodeProto, ends: tuple[str, str]) -> bool:
    return node.op_type == "Cast" and (node.name.startswith(ends[0]) or node.name.endswith(ends[1]))


def _read_by(node: NodeProto) -> Iterator[str]:
    """Yield what a node reads, its subgraphs included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _read_by(inner)
            yield from (value.name for value in graph.output)
