"""What a board is: its rates, its memory, its power and its sensor, each number with its source."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, FiniteFloat, PositiveInt, model_validator

from edgelean.board.document import Frozen, knob, knobs_of

Confidence = Literal["measured", "datasheet", "derived", "guess"]
Precision = Literal["fp32", "fp16", "int8"]
Form = Literal["conv", "depthwise", "grouped", "conv1d", "product"]
"""How a contraction is computed; see :class:`edgelean.board.cost.Detail`."""

FORMS: tuple[Form, ...] = get_args(Form)


class Fact(Frozen):
    """One number of a board and where it comes from.

    Attributes
    ----------
    value
        The number, in the unit of the key that holds it; None where nobody has published or measured it.
    source
        Where a reader can check it, or why it is not known.
    confidence
        ``measured`` on such a board, printed in a ``datasheet``, ``derived`` by arithmetic from sourced numbers, or
        a ``guess``. None exactly where the value is None.
    """

    value: FiniteFloat | None = None
    source: str = "not known"
    confidence: Confidence | None = None

    @model_validator(mode="after")
    def _value_and_confidence_go_together(self) -> Self:
        if (self.value is None) != (self.confidence is None):
            raise ValueError("a value needs a confidence (measured, datasheet, derived or guess), and only a value")
        return self


def _above_zero(fact: Fact) -> Fact:
    if fact.value is not None and fact.value <= 0:
        raise ValueError(f"must be above 0, found {fact.value:g}")
    return fact


def _not_negative(fact: Fact) -> Fact:
    if fact.value is not None and fact.value < 0:
        raise ValueError(f"must not be below 0, found {fact.value:g}")
    return fact


def _share(fact: Fact) -> Fact:
    if fact.value is not None and not 0 < fact.value <= 1:
        raise ValueError(f"must be a share above 0 and up to 1, found {fact.value:g}")
    return fact


Positive = Annotated[Fact, AfterValidator(_above_zero)]
NotNegative = Annotated[Fact, AfterValidator(_not_negative)]
Share = Annotated[Fact, AfterValidator(_share)]
UNKNOWN = Fact()


class Compute(Frozen):
    """Peak arithmetic rates, dense, and the share of them that a whole model reaches."""

    fp32_tflops: Positive = knob(UNKNOWN, "TFLOP/s", "Peak rate of FP32 arithmetic.")
    fp16_tflops: Positive = knob(UNKNOWN, "TFLOP/s", "Peak dense rate of FP16 arithmetic with FP32 accumulation.")
    int8_tops: Positive = knob(UNKNOWN, "TOP/s", "Peak dense rate of INT8 arithmetic.")
    efficiency: Share = knob(UNKNOWN, "share", "Share of the peak that whole models reach end to end.")


class Memory(Frozen):
    """The memory that weights and activations stream through."""

    bandwidth_gb_s: Positive = knob(UNKNOWN, "GB/s", "Peak bandwidth of the memory.")
    bandwidth_efficiency: Share = knob(UNKNOWN, "share", "Share of the peak bandwidth that reads reach.")
    capacity_gb: Positive = knob(UNKNOWN, "GB", "Size of the memory.")
    shared: bool = knob(False, "", "Whether the CPU and the GPU share this memory.")


class Launch(Frozen):
    """What starting an operator costs, however small it is."""

    overhead_us: NotNegative = knob(UNKNOWN, "us", "Time to start one fused operator.")


class Alignment(Frozen):
    """Channel counts are padded to these multiples, so that a step in between makes nothing faster."""

    fp32: PositiveInt = knob(1, "channels", "Multiple to which FP32 channels are padded.")
    fp16: PositiveInt = knob(1, "channels", "Multiple to which FP16 channels are padded.")
    int8: PositiveInt = knob(1, "channels", "Multiple to which INT8 channels are padded.")
    source: str = "no padding is assumed"
    confidence: Confidence = "guess"


class PowerMode(Frozen):
    """One mode of the board's own power management; the meaning of an id differs from board to board."""

    id: int
    name: str
    gpu_mhz: float | None = None
    memory_mhz: float | None = None


class Power(Frozen):
    """What the board draws."""

    idle_w: NotNegative = knob(UNKNOWN, "W", "Power while the board waits.")
    max_w: Positive = knob(UNKNOWN, "W", "Power while the board computes.")
    modes: tuple[PowerMode, ...] = ()
    modes_source: str = ""

    @model_validator(mode="after")
    def _idle_is_below_max(self) -> Self:
        idle, most = self.idle_w.value, self.max_w.value
        if idle is not None and most is not None and idle > most:
            raise ValueError(f"idle_w ({idle:g} W) must not be above max_w ({most:g} W)")
        return self


class Sensors(Frozen):
    """Which sensor reads the power: one rail with the total, or rails that add up to it."""

    backend: Literal["nvml", "hwmon", "rapl", "pmic", "none"] = "none"
    total_rail: str | None = None
    sum_rails: tuple[str, ...] = ()


class Match(Frozen):
    """How a machine is recognised as this board: by any of these.

    Attributes
    ----------
    device_tree
        Entries of its device tree.
    nvml_name
        A regular expression on the name that NVML gives its GPU.
    processor
        The processor's own name, as ``/proc/cpuinfo`` has it.
    """

    device_tree: tuple[str, ...] = ()
    nvml_name: str | None = None
    processor: str | None = None


class Software(Frozen):
    """The software that usually runs there; none of it is needed to read a board."""

    compute_capability: str | None = None
    jetpack: str | None = None
    tensorrt: str | None = None
    cuda: str | None = None
    python: str | None = None


class Fitted(Frozen):
    """One parameter of a calibration, and the ends of its 95 % interval."""

    value: FiniteFloat = Field(ge=0)
    low: FiniteFloat = Field(ge=0)
    high: FiniteFloat = Field(ge=0)

    @model_validator(mode="after")
    def _is_inside_its_interval(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"the value {self.value:g} must lie in its interval, {self.low:g} to {self.high:g}")
        return self


def _rate(fitted: Fitted) -> Fitted:
    if fitted.value <= 0:
        raise ValueError("a rate must be above 0")
    return fitted


def _part(fitted: Fitted) -> Fitted:
    if fitted.value > 1:
        raise ValueError(f"must be a share up to 1, found {fitted.value:g}")
    return fitted


Rate = Annotated[Fitted, AfterValidator(_rate)]
Part = Annotated[Fitted, AfterValidator(_part)]


class Contraction(Frozen):
    """How fast one form of contraction is computed: ``(rows + r) (columns + c) (depth + d)`` at a constant rate.

    The three constants are the extents at which half of the rate is reached.
    """

    gflop_s: Rate = knob(..., "GFLOP/s", "Rate with large extents.")
    rows: Fitted = knob(..., "rows", "Output positions of a product at which half of the rate is reached.")
    columns: Fitted = knob(..., "columns", "Output channels of a product at which half of the rate is reached.")
    depth: Fitted = knob(..., "terms", "Terms of a sum at which half of the rate is reached.")


class Calibration(Frozen):
    """A cost model that was fitted to kernels measured on such a board, in one precision."""

    made: str = knob(..., "", "When it was measured.")
    runtime: str = knob(..., "", "What ran the kernels.")
    fitted_on: str = knob(..., "", "What it was fitted to.")
    kernel_error: FiniteFloat = knob(..., "share", "Median error on kernels that it was not fitted to.", ge=0)
    network_error: FiniteFloat = knob(..., "share", "Median error on networks that it was not fitted to.", ge=0)
    network_rank: FiniteFloat = knob(..., "", "Rank correlation of predicted and measured networks.", ge=-1, le=1)
    call_us: Fitted = knob(..., "us", "Time of a call of the runtime, whatever the model.")
    contract_us: Fitted = knob(..., "us", "Time to start a convolution or matrix product.")
    pointwise_us: Fitted = knob(..., "us", "Time to start a pointwise operator.")
    reduce_us: Fitted = knob(..., "us", "Time to start a reduction, a pooling or a normalisation.")
    move_us: Fitted = knob(..., "us", "Time to start a copy or a permutation.")
    pass_us: Fitted = knob(..., "us", "Time to start a pointwise pass that the runtime does not fuse.")
    stack_us: Fitted = knob(..., "us", "Time to start each product of a stack, each group of a convolution.")
    conv: Contraction
    depthwise: Contraction
    grouped: Contraction
    conv1d: Contraction
    product: Contraction
    light_gelement_s: Rate = knob(..., "1e9/s", "Elements of pointwise passes with a few instructions each.")
    heavy_gelement_s: Rate = knob(..., "1e9/s", "Elements of pointwise passes with an exponential each.")
    reduce_gelement_s: Rate = knob(..., "1e9/s", "Elements that a reduction reads and writes.")
    move_gelement_s: Rate = knob(..., "1e9/s", "Elements that a copy or a permutation reads and writes.")
    near_gb_s: Rate = knob(..., "GB/s", "Bandwidth of what fits into the cache.")
    far_gb_s: Rate = knob(..., "GB/s", "Bandwidth of what does not, on top of the other.")
    cache_mb: Rate = knob(..., "MB", "What fits into the cache.")
    overlap: Part = knob(..., "share", "How much of the shorter of arithmetic and traffic hides behind the longer.")
    idle_w: Fitted | None = knob(None, "W", "Measured power while the board waits.")
    pj_per_flop: Fitted | None = knob(None, "pJ", "Measured energy of a floating point operation, above idle.")
    pj_per_byte: Fitted | None = knob(None, "pJ", "Measured energy of a byte that is moved, above idle.")

    @model_validator(mode="after")
    def _energies_go_together(self) -> Self:
        known = [fitted is not None for fitted in (self.idle_w, self.pj_per_flop, self.pj_per_byte)]
        if any(known) and not all(known):
            raise ValueError("idle_w, pj_per_flop and pj_per_byte are given together, or none of them")
        return self

    @cached_property
    def numbers(self) -> tuple[tuple[str, float], ...]:
        """Every parameter: its key, such as ``conv.gflop_s``, and its value."""
        return tuple((one.key, one.value.value) for one in knobs_of(self) if isinstance(one.value, Fitted))

    def __copy__(self) -> Self:
        """Leave what was cached behind: a copy is made to change a parameter."""
        copied = super().__copy__()
        copied.__dict__.pop("numbers", None)
        return copied


class Calibrations(Frozen):
    """The calibrations of a board, by the precision in which the kernels were measured."""

    fp32: Calibration | None = None
    fp16: Calibration | None = None
    int8: Calibration | None = None


class Board(Frozen):
    """A description of hardware, read from ``devices/boards/NAME.toml``; ``name`` is the name of the file."""

    name: str
    title: str
    kind: Literal["gpu", "cpu"]
    compute: Compute = Compute()
    memory: Memory = Memory()
    launch: Launch = Launch()
    alignment: Alignment = Alignment()
    power: Power = Power()
    sensors: Sensors = Sensors()
    match: Match = Match()
    software: Software = Software()
    calibration: Calibrations = Calibrations()

    def facts(self) -> dict[str, Fact]:
        """Return every number with a source, by its key, such as ``compute.fp16_tflops``."""
        return {knob.key: knob.value for knob in knobs_of(self) if isinstance(knob.value, Fact)}
