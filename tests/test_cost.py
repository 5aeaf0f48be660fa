import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelean.board import Board, Fact, load_board
from edgelean.board.cost import Node, Operator, fuse, predict, views
from edgelean.board.model import Alignment, Compute, Launch, Memory, Power
from edgelean.errors import InputError


def known(value: float) -> Fact:
    return Fact(value=value, source="the test", confidence="measured")


BOARD = Board(
    name="bench",
    title="Round numbers",
    kind="gpu",
    compute=Compute(fp32_tflops=known(1), fp16_tflops=known(4), int8_tops=known(8), efficiency=known(0.5)),
    memory=Memory(bandwidth_gb_s=known(100), bandwidth_efficiency=known(0.8)),
    launch=Launch(overhead_us=known(5)),
    alignment=Alignment(fp32=1, fp16=8, int8=16, confidence="datasheet"),
    power=Power(idle_w=known(10), max_w=known(50)),
)

amounts = st.floats(0, 1e12)
operators = st.builds(
    Operator,
    name=st.just("op"),
    kind=st.just("contract"),
    flops=amounts,
    elements=st.floats(0, 1e10),
    rows=st.just(1.0),
    columns=st.integers(1, 512).map(float),
    depth=st.integers(1, 512).map(float),
)


def contraction(rows: int, columns: int, depth: int, elements: float = 0) -> Operator:
    return Operator("dense", "contract", 2.0 * rows * columns * depth, elements, rows, columns, depth)


def without(board: Board, section: str, *keys: str) -> Board:
    changed = getattr(board, section).model_copy(update={key: Fact() for key in keys})
    return board.model_copy(update={section: changed})


def test_a_convolution_costs_what_the_roofline_by_hand_says():
    # 3x3, 64 -> 64 channels on 32x32, batch 4: 302 MFLOP; 262144 elements in, as many out, and 36864 weights.
    flops = 2 * (4 * 32 * 32) * 64 * 64 * 9
    elements = 2 * 262144 + 36864
    convolution = Operator("conv", "contract", flops, elements, 4 * 32 * 32, 64, 64)
    cost = predict([convolution], BOARD, "fp16", batch=4)
    compute_s = flops / (4e12 * 0.5)
    memory_s = elements * 2 / (100e9 * 0.8)
    assert compute_s > memory_s
    assert cost.latency_ms == pytest.approx((5e-6 + compute_s) * 1e3)
    assert cost.energy_mj == pytest.approx((10 * (5e-6 + compute_s) + 40 * compute_s) / 4 * 1e3)
    assert cost.operators[0].bound == "compute"
    assert cost.notes == ()


@pytest.mark.parametrize(
    ("operator", "bound"),
    [
        (Operator("relu", "pointwise", 0, 1e8), "memory"),
        (contraction(1000, 1024, 1024), "compute"),
        (Operator("relu", "pointwise", 0, 10), "launch"),
    ],
)
def test_the_longest_of_the_three_times_is_named(operator, bound):
    assert predict([operator], BOARD, "fp32", 1).operators[0].bound == bound


@given(width=st.integers(1, 512), depth=st.integers(1, 512))
def test_a_width_between_two_steps_costs_as_much_as_the_upper_step(width, depth):
    upper = contraction(10_000, -(-width // 8) * 8, -(-depth // 8) * 8)
    between = predict([contraction(10_000, width, depth)], BOARD, "fp16", 1)
    assert between.latency_ms == pytest.approx(predict([upper], BOARD, "fp16", 1).latency_ms)


@given(step=st.integers(1, 64), columns=st.integers(1, 64), depth=st.integers(1, 64))
def test_one_aligned_step_less_is_strictly_cheaper_in_latency_and_energy(step, columns, depth):
    narrow = predict([contraction(100_000, 8 * columns, 8 * depth)], BOARD, "fp16", 1)
    wide = predict([contraction(100_000, 8 * (columns + step), 8 * depth)], BOARD, "fp16", 1)
    assert narrow.latency_ms < wide.latency_ms
    assert narrow.energy_mj < wide.energy_mj


def test_a_board_without_padding_charges_every_single_channel():
    assert (
        predict([contraction(10_000, 63, 64)], BOARD, "fp32", 1).latency_ms
        < predict([contraction(10_000, 64, 64)], BOARD, "fp32", 1).latency_ms
    )


def test_an_operator_that_does_nothing_draws_the_idle_power_while_it_is_launched():
    cost = predict([Operator("empty", "pointwise", 0, 0)], BOARD, "fp32", 1)
    assert cost.latency_ms == pytest.approx(0.005)
    assert cost.energy_mj == pytest.approx(10 * 0.005)


@given(operator=operators, batch=st.integers(1, 256))
def test_the_energy_lies_between_idle_power_and_full_power(operator, batch):
    cost = predict([operator], BOARD, "fp16", batch)
    tolerance = 1 + 1e-9
    assert 10 * cost.latency_ms <= cost.energy_mj * batch * tolerance
    assert cost.energy_mj * batch <= 50 * cost.latency_ms * tolerance


@given(model=st.lists(operators, max_size=8))
def test_a_model_costs_the_sum_of_its_operators(model):
    cost = predict(model, BOARD, "fp16", 2)
    single = [predict([operator], BOARD, "fp16", 2) for operator in model]
    assert cost.latency_ms == pytest.approx(sum(one.latency_ms for one in single))
    assert cost.energy_mj == pytest.approx(sum(one.energy_mj for one in single))
    assert len(cost.operators) == len(model)


def test_traffic_is_counted_in_the_bytes_of_the_precision():
    relu = [Operator("relu", "pointwise", 0, 1e9)]
    free_launch = BOARD.model_copy(update={"launch": Launch(overhead_us=known(0))})
    fp32, fp16, int8 = (predict(relu, free_launch, precision, 1).latency_ms for precision in ("fp32", "fp16", "int8"))
    assert (fp32 / int8, fp32 / fp16) == (pytest.approx(4), pytest.approx(2))
    assert fp32 == pytest.approx(4e9 / 80e9 * 1e3)


def test_the_energy_is_per_inference():
    relu = [Operator("relu", "pointwise", 0, 1e9)]
    assert predict(relu, BOARD, "fp32", 1).energy_mj == pytest.approx(64 * predict(relu, BOARD, "fp32", 64).energy_mj)


def test_an_unknown_efficiency_counts_as_one_and_is_noted():
    board = without(without(BOARD, "compute", "efficiency"), "memory", "bandwidth_efficiency")
    cost = predict([contraction(10_000, 64, 64)], board, "fp16", 1)
    assert cost.latency_ms == pytest.approx(0.005 + 2 * 10_000 * 64 * 64 / 4e12 * 1e3)
    assert "compute.efficiency, memory.bandwidth_efficiency" in cost.notes[0]


def test_an_unknown_idle_power_is_left_out_and_noted():
    cost = predict([Operator("relu", "pointwise", 0, 8e7)], without(BOARD, "power", "idle_w"), "fp32", 1)
    assert cost.energy_mj == pytest.approx(50 * (8e7 * 4 / 80e9) * 1e3)
    assert cost.notes == ("power.idle_w is not known: the energy leaves the idle power out",)


def test_the_guesses_of_a_board_file_are_noted_with_their_values():
    cost = predict([contraction(1, 8, 8)], load_board("jetson-agx-orin-64gb"), "fp16", 64)
    (note,) = cost.notes
    assert "jetson-agx-orin-64gb" in note
    assert "compute.efficiency = 0.25" in note
    assert "launch.overhead_us = 5" in note
    assert "bandwidth" not in note


def test_an_unknown_operator_is_counted_by_its_traffic_and_noted():
    cost = predict([Operator("Scan loop", "unknown", 0, 8e7)], BOARD, "fp32", 1)
    assert cost.latency_ms == pytest.approx(0.005 + 4)
    assert cost.notes == ("unknown operators are counted by their traffic alone: Scan loop",)


def test_a_board_that_knows_nothing_is_refused_with_what_is_missing_and_what_to_do():
    with pytest.raises(InputError) as caught:
        predict([], load_board("this-machine"), "fp32", 1)
    for part in ("this-machine", "compute.fp32_tflops", "memory.bandwidth_gb_s", "launch.overhead_us", "power.max_w"):
        assert part in str(caught.value)
    assert "--target local" in str(caught.value)


def test_only_the_peak_of_the_asked_precision_is_needed():
    board = without(BOARD, "compute", "int8_tops")
    assert predict([], board, "fp16", 1).latency_ms == 0
    with pytest.raises(InputError, match=r"compute\.int8_tops"):
        predict([], board, "int8", 1)


def test_a_batch_below_one_is_refused():
    with pytest.raises(InputError, match="at least 1, found 0"):
        predict([], BOARD, "fp32", 0)


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
