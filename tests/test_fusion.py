"""Which nodes are launched as one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelean.board.cost import Node, fuse, unfused, views


def group(*members: tuple[str, str]) -> list[Node]:
    """Nodes of a kind that read the tensors in the text; the i-th writes ``t<i>``."""
    return [
        Node(str(i), kind, tuple(inputs.split()), f"t{i}")  # type: ignore[arg-type]  # any str
        for i, (kind, inputs) in enumerate(members)
    ]


@pytest.mark.parametrize(
    ("members", "exponentials", "passes"),
    [
        ([("contract", "x w"), ("pointwise", "t0 w"), ("pointwise", "t1")], [0, 0, 0], ()),
        ([("contract", "x w"), ("pointwise", "t0 shortcut")], [0, 0], ((1, 0),)),
        ([("contract", "x w"), ("pointwise", "t0"), ("pointwise", "t0 t1")], [0, 1, 0], ((1, 1),)),
        ([("contract", "x w"), ("pointwise", "t0"), ("pointwise", "other t1")], [0, 1, 0], ((1, 1), (2, 0))),
        ([("pointwise", "x w"), ("pointwise", "t0"), ("pointwise", "x t1")], [0, 3, 0], ((1, 3),)),
        ([("pointwise", "x y"), ("pointwise", "t0")], [0, 0], ((0, 0), (1, 0))),
        ([("reduce", "x")], [0], ()),
    ],
    ids=["scale and clamp", "residual", "silu", "gate", "gelu", "sum and clamp", "pooling"],
)
def test_passes_that_no_fusion_takes_in_are_told_from_those_that_every_one_does(members, exponentials, passes):
    assert unfused(group(*members), exponentials, {"w"}) == passes


def chain(*kinds: str) -> list[Node]:
    return [Node(str(i), kind, (f"t{i}",), f"t{i + 1}") for i, kind in enumerate(kinds)]  # type: ignore[arg-type]  # any str


def test_a_convolution_takes_in_normalisation_activation_and_residual_addition():
    nodes = [*chain("contract", "pointwise", "pointwise"), Node("add", "pointwise", ("t3", "t0"), "sum")]
    assert fuse(nodes) == ((0, 1, 2, 3),)


def test_a_result_with_two_readers_is_written_out():
    nodes = [*chain("contract", "pointwise"), Node("also", "reduce", ("t1",), "other")]
    assert fuse(nodes) == ((0,), (1,), (2,))


def test_a_sum_of_two_branches_joins_the_branch_that_is_computed_last():
    nodes = [
        Node("shortcut", "contract", ("x",), "a"),
        Node("branch", "contract", ("x",), "b"),
        Node("add", "pointwise", ("b", "a"), "sum"),
        Node("relu", "pointwise", ("sum",), "y"),
    ]
    assert fuse(nodes) == ((0,), (1, 2, 3))


def test_reductions_and_moves_are_launched_alone():
    assert fuse(chain("contract", "reduce", "pointwise", "move", "pointwise")) == ((0,), (1,), (2,), (3,), (4,))


def test_a_view_launches_nothing_and_fusion_sees_through_it():
    assert fuse(chain("contract", "free", "free", "pointwise")) == ((0, 3),)
    assert fuse(chain("free")) == ()


def test_a_reader_behind_a_view_counts_as_a_reader():
    nodes = [*chain("contract", "free"), Node("a", "pointwise", ("t1",), "a"), Node("b", "pointwise", ("t2",), "b")]
    assert fuse(nodes) == ((0,), (2,), (3,))


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    kinds = draw(st.lists(st.sampled_from(["contract", "pointwise", "reduce", "move", "free"]), max_size=12))
    nodes = []
    for index, kind in enumerate(kinds):
        sources = draw(st.lists(st.integers(-1, index - 1), min_size=1, max_size=3))
        nodes.append(Node(str(index), kind, tuple(f"t{source}" for source in sources), f"t{index}"))
    return nodes


@given(graphs())
def test_every_launched_node_is_in_one_group_and_a_group_has_one_contraction_at_its_head(nodes):
    groups = fuse(nodes)
    launched = [index for index, node in enumerate(nodes) if node.kind != "free"]
    assert sorted(index for group in groups for index in group) == launched
    for group in groups:
        assert list(group) == sorted(group)
        assert all(nodes[index].kind == "pointwise" for index in group[1:])


@given(graphs())
def test_only_the_last_result_of_a_group_is_read_outside_of_it(nodes):
    viewed = views(nodes)
    for group in fuse(nodes):
        inner = {nodes[index].output for index in group[:-1]}
        outside = [node for index, node in enumerate(nodes) if index not in group and node.kind != "free"]
        assert not inner & {viewed.get(name, name) for node in outside for name in node.inputs}
