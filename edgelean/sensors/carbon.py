"""The energy of the training itself, through codecarbon, and its estimate of what this machine draws.

codecarbon is used for energy only. Its carbon intensity follows a country that it may guess wrong, so the grams of CO2
come from :mod:`edgelean.electricity`.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from edgelean.sensors.window import Clock

SILENT = logging.CRITICAL + 1
SECONDS_BETWEEN_READINGS = 10.0
ESTIMATED_SHARE = 0.5
"""Share of its rated power at which codecarbon takes an unmeasured processor to run."""
UNKNOWN_PROCESSOR_W = 85.0
"""What codecarbon takes a processor to need that it cannot even name."""


COUNTED_MODES = ("intel_rapl", "windows_emi", "intel_power_gadget")
COUNTED_CHIPS = ("AppleSiliconChip", "Raspberry")
"""How codecarbon names what it reads from a sensor; everything else about processors and memory is its guess."""

UNREADABLE = "not known: codecarbon could not read this machine"

How = Literal["measured", "estimated", "unknown"]


class Part(NamedTuple):
    """Energy of one component in kWh, and whether it was read from a sensor or guessed from a data sheet.

    The energy of a GPU that works and could not be read is unknown, and 0 here.
    """

    kwh: float
    how: How


@dataclass(frozen=True)
class TrainingCost:
    """What a stretch of training took.

    Attributes
    ----------
    seconds
        Wall-clock length.
    parts
        Energy by component (``"cpu"``, ``"gpu"``, ``"ram"``); empty where codecarbon could not read this machine.
    method
        How it was obtained, in words that can stand in a report.
    """

    seconds: float
    parts: Mapping[str, Part]
    method: str

    @property
    def kwh(self) -> float | None:
        """The whole energy in kWh; None where nothing is known."""
        return sum(part.kwh for part in self.parts.values()) if self.parts else None


class TrainingEnergy:
    """Watches the energy of the whole machine from :meth:`start` to :meth:`stop`.

    Silent, offline and without files: nothing is logged, no address is contacted, no emissions.csv is written. The
    first start takes a second or two, while codecarbon looks at the hardware.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._begin_s = clock()
        self._tracker: Any = None

    def start(self) -> None:
        """Begin to watch."""
        import codecarbon

        _silence()
        self._begin_s = self._clock()
        self._tracker = codecarbon.OfflineEmissionsTracker(
            country_iso_code="USA",  # a country is obligatory; the intensity below leaves it without effect
            force_carbon_intensity_g_co2e_kwh=0.0,
            output_methods=[],
            emissions_endpoint=None,
            allow_multiple_runs=True,
            tracking_mode="machine",
            pue=1.0,
            measure_power_secs=SECONDS_BETWEEN_READINGS,
            log_level="critical",
        )
        self._tracker.start()

    def so_far(self) -> TrainingCost:
        """Return what was used since :meth:`start`, and watch on; takes half a millisecond."""
        seconds = self._clock() - self._begin_s
        if not self._works():
            return TrainingCost(seconds, {}, UNREADABLE)
        self._tracker.flush()
        return _cost(seconds, _parts(self._tracker, self._tracker._prepare_emissions_data()))

    def stop(self) -> TrainingCost:
        """End and return what was used since :meth:`start`."""
        seconds = self._clock() - self._begin_s
        works, tracker, self._tracker = self._works(), self._tracker, None
        if not works:
            return TrainingCost(seconds, {}, UNREADABLE)
        tracker.stop()
        return _cost(seconds, _parts(tracker, tracker.final_emissions_data))

    def _works(self) -> bool:
        """Tell whether anything is read; codecarbon swallows its own failures, and then has no data."""
        return getattr(self._tracker, "_start_time", None) is not None


@dataclass(frozen=True)
class PowerEstimate:
    """A constant power that nobody measured.

    Attributes
    ----------
    watts
        The power in W.
    method
        Whose estimate it is, in words that can stand in a report.
    """

    watts: float
    method: str


def estimate_power() -> PowerEstimate:
    """Return codecarbon's estimate of what the processor of this machine draws: half of its rated power.

    The memory is left out, as RAPL leaves it out. Takes a second or two: codecarbon looks at the processor.
    """
    from codecarbon.core.cpu import TDP

    _silence()
    processor = TDP()
    rated_w = float(processor.tdp or UNKNOWN_PROCESSOR_W)
    watts = ESTIMATED_SHARE * rated_w
    return PowerEstimate(
        watts, f"codecarbon's estimate: {watts:g} W, half of the {rated_w:g} W that it takes {processor.model} to need"
    )


def _silence() -> None:
    """Keep codecarbon from logging; its import sets the level, so this comes after it."""
    logging.getLogger("codecarbon").setLevel(SILENT)


def _cost(seconds: float, parts: Mapping[str, Part]) -> TrainingCost:
    words = ", ".join(f"{name} {part.how}" for name, part in parts.items())
    return TrainingCost(seconds, parts, f"codecarbon, offline, the whole machine: {words}")


def _parts(tracker: Any, data: Any) -> dict[str, Part]:
    """Take the energy apart; what is not known to come from a sensor counts as estimated."""
    counted = {part for item in getattr(tracker, "_hardware", ()) for part in _counted(item)}
    energies = {"cpu": float(data.cpu_energy), "gpu": float(data.gpu_energy), "ram": float(data.ram_energy)}
    parts = {
        name: Part(kwh, "measured" if name == "gpu" or name in counted else "estimated")
        for name, kwh in energies.items()
        if kwh > 0
    }
    if "gpu" not in parts and _gpu_works():
        parts["gpu"] = Part(0.0, "unknown")
    return parts


def _counted(item: Any) -> tuple[str, ...]:
    """Return the component whose energy this piece of codecarbon's hardware reads from a sensor."""
    if getattr(item, "_mode", "") in COUNTED_MODES:
        return ("cpu",)
    if type(item).__name__ in COUNTED_CHIPS:
        return (str(item.chip_part).lower(),)
    return ()


def _gpu_works() -> bool:
    """Return whether torch uses a GPU in this process, without importing or starting anything."""
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    return cuda is not None and bool(cuda.is_initialized())
