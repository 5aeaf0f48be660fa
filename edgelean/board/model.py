"""What a board is: its rates, its memory, its power and its sensor, each number with its source."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, FiniteFloat, PositiveInt, model_validator

from edgelean.board.document import Frozen, knob, knobs_of

Confidence = Literal["measured", "datasheet", "derived", "guess"]
Precision = Literal["fp32", "fp16", "int8"]


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
    """How a machine is recognised as this board: device-tree entries, or a regular expression on the NVML name."""

    device_tree: tuple[str, ...] = ()
    nvml_name: str | None = None


class Software(Frozen):
    """The software that usually runs there; none of it is needed to read a board."""

    compute_capability: str | None = None
    jetpack: str | None = None
    tensorrt: str | None = None
    cuda: str | None = None
    python: str | None = None


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

    def facts(self) -> dict[str, Fact]:
        """Return every number with a source, by its key, such as ``compute.fp16_tflops``."""
        return {knob.key: knob.value for knob in knobs_of(self) if isinstance(knob.value, Fact)}
