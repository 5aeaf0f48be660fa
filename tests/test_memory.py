"""How much a model holds at once, against an account that is kept operator by operator."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgelean.board.cost import Node
from edgelean.board.memory import alive, launches
from edgelean.exporter.onnx import export_onnx
from edgelean.shrink.axes import dissect
from edgelean.target.onnx_graph import held_by


@st.composite
def graphs(draw):
    """Operators of all kinds, each of which reads some of what was there before."""
    names, nodes = ["x"], []
    for place in range(draw(st.integers(1, 9))):
        kind = draw(st.sampled_from(["contract", "pointwise", "reduce", "move"]))
        read = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True))
        nodes.append(Node(f"n{place}", kind, tuple(read), f"t{place}"))
        names.append(f"t{place}")
    return nodes


@given(graphs(), st.data())
def test_most_is_held_when_an_account_of_every_launch_says_so(nodes, data):
    outputs = {nodes[-1].output}
    order = launches(nodes)
    sizes = {name: data.draw(st.integers(1, 50)) for name in ("x", *(node.output for node in nodes))}
    held, most = {"x"}, 0
    for place, launch in enumerate(order):
        held |= launch.writes
        most = max(most, sum(sizes[name] for name in held))
        later = set().union(*(other.reads for other in order[place + 1 :])) if place + 1 < len(order) else set()
        held = {name for name in held if name in later | outputs | {"x"}}
    found = max(sum(sizes[name] for name in together) for together in alive(order, {"x"}, outputs))
    assert found == most


def test_what_is_fused_is_never_written():
    nodes = [
        Node("conv", "contract", ("x", "w"), "a"),
        Node("relu", "pointwise", ("a",), "b"),
        Node("pool", "reduce", ("b",), "c"),
    ]
    assert [launch.writes for launch in launches(nodes)] == [{"b"}, {"c"}]


def test_a_view_is_the_tensor_that_it_shows():
    nodes = [
        Node("conv", "contract", ("x",), "a"),
        Node("flat", "free", ("a",), "v"),
        Node("fc", "contract", ("v",), "y"),
    ]
    assert [launch.reads for launch in launches(nodes)] == [{"x"}, {"a"}]


class Residual(nn.Module):
    """The first tensor waits for the sum while two wider ones come and go."""

    def __init__(self, inner=32):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.up, self.down = nn.Conv2d(8, inner, 1), nn.Conv2d(inner, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.down(torch.relu(self.up(x)))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("batch", [1, 4])
def test_a_residual_stream_is_held_while_its_branch_runs(batch):
    model = Residual().eval()
    anatomy = dissect(model, (torch.zeros(batch, 3, 6, 6),))
    held = anatomy.structure.held({})
    assert held.weights == sum(parameter.numel() for parameter in model.parameters())
    # While the branch narrows: the input, the stream, the inner tensor, and the sum that is written.
    assert held.alive == batch * 36 * (3 + 8 + 32 + 8)


@pytest.mark.parametrize("kept", [32, 16, 8])
def test_a_structure_knows_what_the_exported_file_of_the_cut_model_holds(tmp_path, kept):
    (axis,) = [name for name, each in dissect(Residual(), (torch.zeros(2, 3, 6, 6),)).axes.items() if each.size == 32]
    predicted = dissect(Residual(), (torch.zeros(2, 3, 6, 6),)).structure.held({axis: kept})
    file = export_onnx(Residual(kept).eval(), (torch.zeros(2, 3, 6, 6),), tmp_path / "m.onnx", metadata={})
    assert held_by(file, 2) == predicted
    assert predicted.bytes("fp16") * 2 == predicted.bytes("fp32")
