"""Calibration: the designed kernels, how they are measured, and what a fit makes of them."""

import itertools
import math
import statistics
from collections import Counter
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from calibrations import NUMBERS, STEP, SimulatedTarget, calibrated_board
from scipy.stats import spearmanr

from edgelean.board import Fact, load_board
from edgelean.board.cost import predict
from edgelean.calibration import calibrate
from edgelean.calibration.energy import fit_energy
from edgelean.calibration.families import FAMILIES, designed
from edgelean.calibration.fit import fit, latencies_ms
from edgelean.calibration.graph import Sketch
from edgelean.calibration.kernels import Kernel, spread
from edgelean.calibration.measure import Measured, measure
from edgelean.calibration.networks import networks
from edgelean.calibration.procedure import rank_correlation, reach_of
from edgelean.errors import DeviceError, InputError
from edgelean.reading import Provenance
from edgelean.target.local import LocalTarget
from edgelean.target.onnx_graph import operators_of

REACH = 2e7
NOISY = "others were at work"


def no_halving(single, half):
    raise AssertionError("nobody asked for half precision")


def operators(piece):
    model, feeds = piece.graph()
    return operators_of(model, next(iter(feeds.values())).shape[0])


@pytest.fixture(scope="module")
def kernels():
    """Half of the designed kernels, not measured yet: their names and operators."""
    return [(kernel.name, operators(kernel)) for kernel in designed(REACH, share=0.5)]


@pytest.fixture(scope="module")
def unseen():
    return [operators(network) for network in networks()]


def timed(kernels, scatter=0.0, seed=3):
    """Kernels that take what the true numbers say, but for some scatter."""
    true = latencies_ms([one for _, one in kernels], NUMBERS, STEP, "fp32")
    off = np.exp(np.random.default_rng(seed).normal(0.0, scatter, len(kernels)))
    return [Measured(name, one, float(ms)) for (name, one), ms in zip(kernels, true * off, strict=True)]


def error(fitted, models):
    true = latencies_ms(models, NUMBERS, STEP, "fp32")
    return float(np.median(np.abs(latencies_ms(models, fitted.numbers, fitted.step, "fp32") / true - 1)))


# -- the kernels -------------------------------------------------------------------------------------------------------


def test_every_designed_kernel_and_every_network_runs_and_nothing_in_it_is_unknown():
    for piece in (*designed(4e6, share=0.1), *networks()):
        model, feeds = piece.graph()
        (result,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
        assert np.isfinite(result).all(), piece.name
        assert result.size <= 5000, piece.name
        assert not [one for one in operators(piece) if one.kind == "unknown"], piece.name


def test_no_kernel_has_much_more_arithmetic_than_the_board_reaches(kernels):
    assert max(sum(one.flops for one in found) for _, found in kernels) < 2 * REACH


def test_a_board_that_reaches_further_gets_larger_kernels():
    small, large = (max(kernel.effort for kernel in designed(reach)) for reach in (1e7, 1e9))
    assert small < 1e7 < large < 1e9


def test_every_form_and_every_kind_of_operator_is_among_the_kernels(kernels):
    found = [operator for _, one in kernels for operator in one]
    assert {operator.kind for operator in found} == {"contract", "pointwise", "reduce", "move"}
    forms = Counter(operator.detail.form for operator in found)
    assert all(forms[form] >= 5 for form in ("conv", "depthwise", "grouped", "conv1d", "product"))
    assert any(operator.detail.stacks > 1 and operator.detail.form == "product" for operator in found)


def test_every_family_is_represented_even_where_few_kernels_are_wanted():
    assert {kernel.family for kernel in designed(1e8, share=0.01)} == {family.name for family in FAMILIES}


def test_chosen_kernels_leave_no_hole_wider_than_the_gaps_between_them():
    grid = [
        Kernel("f", {"width": width, "side": side}, width * side, Sketch.corner)
        for width, side in itertools.product((8, 16, 24, 64, 256), (1, 4, 5, 64))
    ]
    chosen = spread(grid, 7)
    assert len({kernel.name for kernel in chosen}) == 7
    assert chosen[0].sizes == {"width": 256, "side": 64}

    def far(one, other):
        return math.dist(*([math.log2(size) for size in kernel.sizes.values()] for kernel in (one, other)))

    gap = min(far(one, other) for one, other in itertools.combinations(chosen, 2))
    assert all(min(far(kernel, one) for one in chosen) <= gap for kernel in grid)


def test_all_kernels_of_a_small_family_are_taken_once():
    few = [Kernel("f", {"width": width}, width, Sketch.corner) for width in (8, 16)]
    assert sorted(kernel.effort for kernel in spread(few, 10)) == [8, 16]
    assert spread([], 3) == []


# -- measuring ---------------------------------------------------------------------------------------------------------


def few():
    return designed(4e6, share=0.01)[:8]


def measured_by(*rounds, **options):
    return measure(few(), rounds, "fp32", no_halving, **options)


def test_every_round_reads_every_kernel_once_and_no_two_rounds_in_the_same_order():
    target = SimulatedTarget()
    measured_by(target, target)
    first, second = target.readings[:8], target.readings[8:]
    assert sorted(first) == sorted(second)
    assert len(set(first)) == 8
    assert first != second


def test_the_latency_is_the_median_of_the_quiet_readings():
    loud = SimulatedTarget(scatter=0.0, noise=lambda reading: NOISY if 8 <= reading < 16 else "")
    for one in measured_by(loud, loud, loud):
        assert one.latency_ms == pytest.approx(predict(one.operators, calibrated_board(), "fp32", 1).latency_ms)
        assert one.noise == ""
        assert one.runtime == "a simulation"


@pytest.mark.parametrize(("noise", "factor"), [("", 1.1), (NOISY, 1.0)])
def test_of_quiet_readings_the_middle_one_counts_and_of_noisy_ones_the_shortest(noise, factor):
    factors = itertools.cycle((1.5, 1.0, 1.1))

    class Scattered(SimulatedTarget):
        def read(self, candidate):
            cost, off = self.predict(candidate.operators), next(factors)
            figure = self._figure(off * cost.latency_ms, "ms")
            return replace(super().read(candidate), latency=figure, noise=noise)

    target = Scattered()
    (one,) = measure(few()[:1], [target] * 3, "fp32", no_halving, most_noisy=1.0)
    assert one.latency_ms == pytest.approx(factor * target.predict(one.operators).latency_ms)


def test_what_was_never_quiet_is_read_again():
    target = SimulatedTarget(scatter=0.0, noise=lambda reading: NOISY if reading == 3 else "")
    quiet = SimulatedTarget(scatter=0.0)
    found = measured_by(target)
    assert len(target.readings) == 9
    assert target.readings[8] == target.readings[3]
    assert [one.latency_ms for one in found] == [one.latency_ms for one in measured_by(quiet)]


def test_a_noisy_machine_is_refused_with_its_reason_after_one_round():
    target = SimulatedTarget(noise=lambda reading: NOISY)
    with pytest.raises(DeviceError, match=f"too noisy for a calibration: 8 of 8 .* never measured in quiet; {NOISY}"):
        measured_by(target, target, target)
    assert len(target.readings) == 8


def test_some_noise_that_stays_is_refused_too_unless_it_was_allowed():
    def half_noisy(reading):
        return NOISY if reading % 8 < 4 or reading >= 8 else ""

    with pytest.raises(DeviceError, match="4 of 8"):
        measured_by(SimulatedTarget(noise=half_noisy))
    allowed = measured_by(SimulatedTarget(noise=half_noisy), most_noisy=1.0)
    assert sorted(one.noise for one in allowed) == [""] * 4 + [NOISY] * 4


def test_figures_that_were_not_measured_on_the_board_are_refused():
    with pytest.raises(InputError, match="run on the board itself, and these are transferred"):
        measured_by(SimulatedTarget(provenance=Provenance.TRANSFERRED))


def test_another_precision_than_the_asked_one_is_refused():
    with pytest.raises(InputError, match="in fp32 is asked for, and the runtime there computes in fp16"):
        measured_by(SimulatedTarget(precision="fp16"))


def test_half_precision_is_written_once_by_who_can():
    asked, written = [], []

    class Half(SimulatedTarget):
        def read(self, candidate):
            asked.append(candidate.onnx("fp16").name)
            return super().read(candidate)

    def halve(single, half):
        written.append((single.name, half.name))
        half.touch()

    target = Half(precision="fp16")
    measure(few()[:2], [target, target], "fp16", halve)
    assert sorted(written) == [("0.onnx", "0.fp16.onnx"), ("1.onnx", "1.fp16.onnx")]
    assert sorted(asked) == ["0.fp16.onnx", "0.fp16.onnx", "1.fp16.onnx", "1.fp16.onnx"]


def test_progress_is_told_after_every_reading():
    told = []
    target = SimulatedTarget(noise=lambda reading: NOISY if reading == 0 else "")
    measured_by(target, on_reading=lambda done, wanted: told.append((done, wanted)))
    assert told == [*((done, 8) for done in range(1, 9)), (9, 9)]


# -- the fit -----------------------------------------------------------------------------------------------------------


def test_a_fit_to_scattered_kernels_predicts_networks_and_finds_the_channel_step(kernels, unseen):
    fitted = fit(timed(kernels, scatter=0.03), "fp32")
    assert fitted.step == STEP
    assert error(fitted, unseen) < 0.03
    for key in ("call_us", "conv.gflop_s", "product.gflop_s", "heavy_gelement_s"):
        assert fitted.numbers[key] == pytest.approx(NUMBERS[key], rel=0.15), key


def test_intervals_hold_most_of_the_true_parameters(kernels):
    fitted = fit(timed(kernels, scatter=0.03, seed=5), "fp32")
    held = [fitted.low[key] <= value <= fitted.high[key] for key, value in NUMBERS.items()]
    assert statistics.mean(held) >= 0.85


def test_kernels_that_the_model_cannot_describe_do_not_spoil_the_fit(kernels, unseen):
    measured = timed(kernels, scatter=0.02)
    spoiled = [replace(one, latency_ms=4 * one.latency_ms) if i % 12 == 5 else one for i, one in enumerate(measured)]
    assert error(fit(spoiled, "fp32"), unseen) < 0.06


def test_a_calibration_from_beginning_to_end_ends_in_a_board_that_predicts_its_target():
    target = SimulatedTarget(scatter=0.02)
    found = calibrate(load_board("raspberry-pi-5"), "fp32", [target, target], no_halving, share=0.3)
    made = found.calibration
    assert found.board.calibration.fp32 == made
    assert found.board.alignment.fp32 == STEP
    assert found.board.power == load_board("raspberry-pi-5").power
    assert made.network_error < 0.05
    assert made.kernel_error < 0.08
    assert made.network_rank == pytest.approx(
        spearmanr(*zip(*((one.measured_ms, one.predicted_ms) for one in found.trials), strict=True)).statistic
    )
    for network, trial in zip(networks(), found.trials, strict=True):
        assert trial.name == network.name
        predicted = predict(operators(network), found.board, "fp32", 1).latency_ms
        assert trial.predicted_ms == pytest.approx(predicted, rel=1e-3)


def test_a_calibrated_machine_transfers_what_it_measures_by_the_ratio_of_the_two_cost_models(unseen):
    machine, there = calibrated_board(), load_board("raspberry-pi-5")
    target = LocalTarget(there, machine, "fp32", 1)
    here_ms, there_ms = (predict(unseen[0], board, "fp32", 1).latency_ms for board in (machine, there))
    assert target.provenance is Provenance.TRANSFERRED
    assert target.predict(unseen[0]).latency_ms == there_ms
    assert there_ms > here_ms > 0


@pytest.mark.parametrize(
    ("tflops", "efficiency", "reach"), [(None, None, 1e8), (0.2, 0.5, 1e8), (1e-6, 1.0, 4e6), (2e3, None, 2e11)]
)
def test_the_largest_kernel_takes_about_a_millisecond_on_any_board(tflops, efficiency, reach):
    board = load_board("this-machine")
    facts = {
        key: Fact(value=value, source="the test", confidence="guess")
        for key, value in (("fp32_tflops", tflops), ("efficiency", efficiency))
        if value is not None
    }
    board = board.model_copy(update={"compute": board.compute.model_copy(update=facts)})
    assert reach_of(board, "fp32") == pytest.approx(reach)


@pytest.mark.parametrize(
    "pairs", [[(1, 5), (2, 7), (3, 6)], [(1, 1), (1, 2), (4, 3), (9, 3)], [(1, 3), (2, 2), (3, 1)]]
)
def test_the_rank_correlation_is_spearmans(pairs):
    assert rank_correlation(pairs) == pytest.approx(spearmanr(*zip(*pairs, strict=True)).statistic)


def test_equal_figures_have_no_rank_correlation():
    assert rank_correlation([(1, 2), (1, 3)]) == 0


# -- energy ------------------------------------------------------------------------------------------------------------


def with_energy(measured, idle_w, pj_per_flop, pj_per_byte, scatter):
    random = np.random.default_rng(2)
    found = []
    for one in measured:
        flops, elements = (sum(getattr(o, key) for o in one.operators) for key in ("flops", "elements"))
        work_mj = (pj_per_flop * flops + pj_per_byte * 4 * elements) * 1e-9
        gross_mj = (idle_w * one.latency_ms + work_mj) * math.exp(random.normal(0, scatter))
        found.append(replace(one, energy_mj=gross_mj, idle_w=idle_w * math.exp(random.normal(0, scatter))))
    return found


def test_energy_per_operation_and_byte_is_found_from_scattered_kernels(kernels):
    measured = with_energy(timed(kernels), idle_w=5.0, pj_per_flop=60.0, pj_per_byte=250.0, scatter=0.02)
    energies = fit_energy(measured, "fp32")
    truth = {"idle_w": 5.0, "pj_per_flop": 60.0, "pj_per_byte": 250.0}
    for key, value in truth.items():
        found = getattr(energies, key)
        assert found.value == pytest.approx(value, rel=0.1)
        assert found.low <= found.value <= found.high


def test_an_energy_that_is_not_there_is_zero_and_not_below(kernels):
    energies = fit_energy(with_energy(timed(kernels), 5.0, 60.0, 0.0, scatter=0.05), "fp32")
    assert energies.pj_per_byte.low == 0 <= energies.pj_per_byte.value
    assert energies.pj_per_flop.value == pytest.approx(60.0, rel=0.1)


def test_without_measured_energy_there_is_none(kernels):
    measured = timed(kernels)
    assert fit_energy(measured, "fp32") is None
    assert fit_energy(with_energy(measured[:9], 5.0, 60.0, 1.0, 0.0) + measured[9:], "fp32") is None


def test_energy_that_a_target_measures_ends_in_the_calibration_and_modelled_energy_does_not():
    found = [
        measure(few(), [SimulatedTarget(scatter=0.0, with_energy=wanted)], "fp32", no_halving)
        for wanted in (True, False)
    ]
    for one in found[0]:
        cost = predict(one.operators, calibrated_board(), "fp32", 1)
        assert (one.energy_mj, one.idle_w) == (pytest.approx(cost.energy_mj), pytest.approx(10.0))
    assert all(one.energy_mj is None for one in found[1])
