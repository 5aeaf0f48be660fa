from dataclasses import replace

import pytest
from calibrations import NUMBERS, calibrated_board, exactly
from hypothesis import given
from hypothesis import strategies as st

from edgelean.board import Board, Fact, load_board
from edgelean.board.cost import Detail, Operator, convolution_form, predict
from edgelean.board.model import FORMS, Alignment, Compute, Launch, Memory, Power
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


def calibrated_ms(operators: list[Operator], **changes: float) -> float:
    """The time of the operators on the calibrated board, without that of the call."""
    return sum(one.latency_ms for one in predict(operators, calibrated_board(**changes), "fp32", 1).operators)


def shaped(
    form: str, rows: int, columns: int, depth: int, taps: int = 1, stacks: int = 1, heavy: float = 0.0
) -> Operator:
    """A contraction that reads and writes what its extents say."""
    weights = float(columns * depth * taps)
    elements = weights + rows * (columns + depth * stacks)
    detail = Detail(form, float(stacks), weights, int(heavy > 0), 0.0, heavy)  # type: ignore[arg-type]  # any str
    flops = 2.0 * rows * columns * depth * taps
    return Operator("op", "contract", flops, elements, float(rows), float(columns), float(depth), detail)


def test_what_a_calibration_knows_in_addition_changes_nothing_on_other_boards():
    plain = contraction(1000, 48, 48, elements=1e5)
    detailed = replace(plain, detail=Detail("grouped", 8.0, 1e4, 3, 1e6, 1e6))
    assert predict([detailed], BOARD, "fp16", 4) == predict([plain], BOARD, "fp16", 4)


def test_a_calibrated_convolution_costs_what_one_computes_by_hand():
    # 3x3, 16 -> 32 channels, 1024 positions; 50 384 elements moved, 4608 of them weights; everything is in the cache.
    convolution = shaped("conv", 1024, 32, 16, taps=9)
    compute_us = 2 * (1024 + 0.5) * (32 + 3) * (9 * 16 + 5) / 120e3
    traffic_us = convolution.elements * 4 / 80e3
    cost = predict([convolution], calibrated_board(), "fp32", 1)
    assert cost.operators[0].latency_ms == pytest.approx(1e-3 * (0.5 + compute_us + 0.5 * traffic_us))
    assert cost.latency_ms == pytest.approx(cost.operators[0].latency_ms + 2e-3)
    assert cost.operators[0].bound == "compute"


def test_a_calibration_is_used_in_its_own_precision_only():
    board = BOARD.model_copy(update={"calibration": calibrated_board().calibration})
    operators = [contraction(1000, 64, 64, elements=1e5)]
    assert predict(operators, board, "fp16", 1) == predict(operators, BOARD, "fp16", 1)
    cost = predict(operators, board, "fp32", 1)
    assert cost.latency_ms != predict(operators, BOARD, "fp32", 1).latency_ms
    assert "calibrated on 2026-01-31 with the test: off by 7 %" in cost.notes[0]


positive = st.floats(1e-3, 1e3)
calibrations = st.fixed_dictionaries(
    {key.replace(".", "__"): st.floats(0, 1) if key == "overlap" else positive for key in NUMBERS}
)
contractions = st.builds(
    shaped,
    form=st.sampled_from(FORMS),
    rows=st.integers(1, 4096),
    columns=st.integers(1, 300),
    depth=st.integers(1, 300),
    taps=st.sampled_from([1, 9, 25]),
    stacks=st.integers(1, 64),
    heavy=st.sampled_from([0.0, 1e4]),
)


@given(numbers=calibrations, wide=contractions, data=st.data())
def test_fewer_rows_columns_terms_or_stacks_never_cost_more_on_any_calibrated_board(numbers, wide, data):
    detail = wide.detail
    taps = round(wide.flops / (2 * wide.rows * wide.columns * wide.depth))
    whole = {"rows": wide.rows, "columns": wide.columns, "depth": wide.depth, "stacks": detail.stacks}
    kept = {name: data.draw(st.integers(1, int(size)), name) for name, size in whole.items()}
    narrow = shaped(detail.form, taps=taps, heavy=detail.heavy * kept["columns"] / wide.columns, **kept)
    narrow = replace(narrow, detail=replace(narrow.detail, passes=detail.passes))
    board = calibrated_board(**numbers)
    before, after = (predict([one], board, "fp32", 1) for one in (wide, narrow))
    assert after.latency_ms <= before.latency_ms * (1 + 1e-9)
    assert after.energy_mj <= before.energy_mj * (1 + 1e-9)


@given(
    kind=st.sampled_from(["pointwise", "reduce", "move", "unknown"]),
    elements=st.floats(0, 1e9),
    share=st.floats(0, 1),
    kept=st.floats(0, 1),
)
def test_fewer_elements_never_cost_more_on_a_calibrated_board(kind, elements, share, kept):
    def moved(amount: float) -> float:
        detail = Detail(weights=share * amount, passes=2, light=amount, heavy=amount)
        return calibrated_ms([Operator("op", kind, 0.0, amount, detail=detail)])

    assert moved(kept * elements) <= moved(elements) * (1 + 1e-9)


def test_a_calibrated_board_pads_channels_to_its_step():
    for form in FORMS:
        arithmetic = [
            replace(shaped(form, 1000, columns, depth), elements=0.0, detail=Detail(form))
            for columns, depth in ((17, 33), (32, 48))
        ]
        assert calibrated_ms(arithmetic[:1]) == pytest.approx(calibrated_ms(arithmetic[1:]))


def test_the_few_channels_of_an_image_are_not_padded():
    def first_layer(depth: int) -> float:
        return calibrated_ms([replace(shaped("conv", 1000, 32, depth, taps=9), elements=0.0, detail=Detail("conv"))])

    assert first_layer(1) < first_layer(3) < first_layer(15) < first_layer(16) < first_layer(17) == first_layer(32)


def test_small_extents_do_not_reach_the_rate():
    large, small = shaped("product", 10_000, 1600, 1600), shaped("product", 4, 16, 16)
    rates = [one.flops / calibrated_ms([one], contract_us=0.0, overlap=1.0) / 1e6 for one in (large, small)]
    assert rates[0] == pytest.approx(110, rel=0.01)
    assert rates[1] < 0.7 * rates[0]


def test_weights_of_a_model_that_outgrow_the_cache_are_read_from_far():
    # 1.6 MB of weights per layer; the cache holds 16 MB.
    layer = shaped("product", 1, 400, 1000)
    few, many = (calibrated_ms([layer] * count) / count for count in (5, 100))
    traffic_us = layer.detail.weights * 4 * (1 - 16 / 160) / 25e3
    assert many - few == pytest.approx(traffic_us * 1e-3, rel=0.01)


def test_the_overlap_says_how_much_of_the_shorter_time_hides_behind_the_longer():
    # So many elements that the traffic takes as long as the arithmetic.
    flops = 2.0 * 1000 * 160 * 160
    arithmetic = replace(contraction(1000, 160, 160), detail=Detail("product"))
    compute_ms = calibrated_ms([arithmetic], contract_us=0.0)
    both = replace(arithmetic, flops=flops, elements=compute_ms * 80e6 / 4)
    hidden, half, none = (
        calibrated_ms([both], contract_us=0.0, overlap=share, cache_mb=1e3) for share in (1.0, 0.5, 0.0)
    )
    assert (half / hidden, none / hidden) == (pytest.approx(1.5), pytest.approx(2.0))


def test_groups_are_started_one_by_one_but_not_those_of_a_depthwise_convolution():
    many, few = (shaped("grouped", 100, 64, 8, stacks=stacks) for stacks in (8, 2))
    many, few = (replace(one, elements=0.0, detail=replace(one.detail, weights=0.0)) for one in (many, few))
    assert calibrated_ms([many], grouped__columns=0.0) - calibrated_ms([few], grouped__columns=0.0) == pytest.approx(
        6 * 0.1e-3
    )
    deep = shaped("depthwise", 100, 64, 1, taps=9, stacks=64)
    assert calibrated_ms([deep]) == calibrated_ms([deep], stack_us=5.0)


def test_a_pass_that_is_not_fused_has_a_start_of_its_own_and_takes_time_for_its_elements():
    clean = shaped("conv", 100, 32, 32)
    passed = replace(clean, detail=replace(clean.detail, passes=2, light=1e6, heavy=1e6))
    extra_us = 2 * 0.3 + 1e6 / 12e3 + 1e6 / 3e3
    assert calibrated_ms([passed]) - calibrated_ms([clean]) == pytest.approx(extra_us * 1e-3)


def test_a_pointwise_operator_is_started_once_for_its_first_pass():
    one, three = (Operator("op", "pointwise", 0.0, 0.0, detail=Detail(passes=passes)) for passes in (1, 3))
    assert calibrated_ms([one]) == pytest.approx(0.4e-3)
    assert calibrated_ms([three]) == pytest.approx(0.4e-3 + 2 * 0.3e-3)


def test_a_calibrated_model_costs_its_call_and_the_sum_of_its_operators():
    model = [shaped("conv", 100, 32, 32), shaped("product", 1, 10, 64), Operator("pool", "reduce", 0.0, 1e4)]
    cost = predict(model, calibrated_board(), "fp32", 1)
    assert cost.latency_ms == pytest.approx(2e-3 + sum(one.latency_ms for one in cost.operators))
    assert cost.energy_mj == pytest.approx(10 * 2e-3 + sum(one.energy_mj for one in cost.operators))


def test_measured_energies_take_the_place_of_the_power():
    energies = {"idle_w": exactly(4.0), "pj_per_flop": exactly(20.0), "pj_per_byte": exactly(100.0)}
    board = calibrated_board()
    measured = board.calibration.fp32.model_copy(update=energies)
    board = board.model_copy(
        update={"calibration": board.calibration.model_copy(update={"fp32": measured}), "power": Power()}
    )
    operator = shaped("conv", 100, 32, 32)
    cost = predict([operator], board, "fp32", 2)
    work_mj = (20.0 * operator.flops + 100.0 * 4 * operator.elements) * 1e-9
    assert cost.energy_mj == pytest.approx((4.0 * cost.latency_ms + work_mj) / 2)


def test_a_calibrated_board_without_any_power_is_refused_with_what_is_missing():
    board = calibrated_board().model_copy(update={"power": Power()})
    with pytest.raises(InputError, match=r"does not know power\.max_w"):
        predict([], board, "fp32", 1)


@pytest.mark.parametrize(
    ("groups", "depth", "dimensions", "transposed", "form"),
    [
        (1, 16, 2, False, "conv"),
        (1, 1, 2, False, "conv"),
        (1, 16, 1, False, "conv1d"),
        (1, 16, 3, False, "conv1d"),
        (1, 16, 2, True, "conv1d"),
        (16, 1, 2, False, "depthwise"),
        (16, 1, 1, False, "grouped"),
        (4, 4, 2, False, "grouped"),
    ],
)
def test_a_convolution_has_the_form_in_which_runtimes_compute_it(groups, depth, dimensions, transposed, form):
    assert convolution_form(groups, depth, dimensions, transposed) == form
