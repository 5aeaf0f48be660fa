"""What reads power or energy on this board: NVML, the rails of a Jetson, RAPL, the power chip of a Raspberry Pi 5."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

from common import ROOT, RefusedError, number, text
from nvml import Gpu, Nvml
from windows import Counter, Meter, Sensor

# The same chips are shown under several names, some of which a container may lack.
HWMON = ("sys/class/hwmon/hwmon*", "sys/bus/i2c/drivers/ina*/*/hwmon/hwmon*")
IIO = "sys/bus/i2c/drivers/ina3221*/*/iio*device*"
PERIOD_S = 0.05
# Instantaneous power rises for up to 0.25 s on a GeForce of the 30 or 40 series, averaged power looks back over 1 s.
INSTANT_SETTLE_S, AVERAGE_SETTLE_S = 0.4, 1.3
# An INA3221 converts for at most 49.5 ms a round; what is longer has its samples in it. 5 time constants settle 99 %.
ROUND_MS, SETTLING, UNKNOWN_SETTLE_S = 49.5, 5.0, 2.0
INA238_MS = 50.5  # 3 values of 16 samples of 1.052 ms, as Linux sets it
PMIC_PERIOD_S, PMIC_SETTLE_S = 0.1, 0.3
# From the rails of a Raspberry Pi 5 to the power at its plug: a line through a meter's readings of one board.
PMIC_GAIN, PMIC_OFFSET_W = 1.1451, 0.5879
GRANT_RAPL = "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
MIRROR_UJ = 500000.0


class Rail:
    """One labelled supply line: the files whose product is its power, in W if multiplied by ``watts``."""

    def __init__(self, files: Tuple[Path, ...], watts: float, settle_s: float) -> None:
        self._files, self._watts, self.settle_s = files, watts, settle_s

    def read_w(self) -> float:
        """Return the power in W now."""
        product = self._watts
        for file in self._files:
            value = number(file)
            if value is None:
                raise RefusedError("sensor", f"hwmon: {file} cannot be read", "look at the file on the board")
            product *= value
        return product


def rails(root: Path = ROOT) -> Dict[str, Rail]:
    """Return all rails by their labels: INA3221 and INA238 chips through hwmon, through iio as on JetPack 4."""
    found: Dict[str, Rail] = {}
    for folder in (folder for pattern in HWMON for folder in sorted(root.glob(pattern))):
        chip = text(folder / "name")
        if chip.startswith("ina3221"):
            for label, channel in labels(folder, "in{}_label", (1, 2, 3)):  # further ones are sums of shunt voltages
                files = (folder / f"in{channel}_input", folder / f"curr{channel}_input")
                found.setdefault(label, Rail(files, 1e-6, settle_s(folder)))
        elif chip == "ina238" and (folder / "power1_input").is_file():
            found.setdefault(
                text(folder / "label") or "VIN", Rail((folder / "power1_input",), 1e-6, settle_s(folder, INA238_MS))
            )
    for folder in sorted(root.glob(IIO)):
        for label, channel in labels(folder, "rail_name_{}", (0, 1, 2)):
            power, volts, amperes = (folder / f"in_{kind}{channel}_input" for kind in ("power", "voltage", "current"))
            whole = power.is_file()
            rail = Rail((power,) if whole else (volts, amperes), 1e-3 if whole else 1e-6, UNKNOWN_SETTLE_S)
            found.setdefault(label, rail)
    return found


def labels(folder: Path, pattern: str, channels: Tuple[int, ...]) -> List[Tuple[str, int]]:
    """Return label and number of the channels of a chip that are connected."""
    named = [(text(folder / pattern.format(channel)), channel) for channel in channels]
    return [(label, channel) for label, channel in named if label and label != "NC"]


def settle_s(folder: Path, usual_ms: Optional[float] = None) -> float:
    """Return how long a chip still shows what was before: it averages like a low-pass filter."""
    interval_ms, samples = number(folder / "update_interval"), number(folder / "samples") or 1.0
    if interval_ms is None and usual_ms is None:
        return UNKNOWN_SETTLE_S
    interval_ms = interval_ms or usual_ms or 0.0
    return SETTLING * max(interval_ms if interval_ms > ROUND_MS else interval_ms * samples, 1.0) / 1e3


def pmic_w(words: str) -> float:
    """Return the power in W from the answer of ``vcgencmd pmic_read_adc``: rails with a current and a voltage."""
    found: Dict[str, Dict[str, float]] = {}
    for rail, letter, value in re.findall(r"(\w+)_([AV])\s+\w+\(\d+\)=([\d.]+)", words):
        found.setdefault(rail, {})[letter] = float(value)
    sum_w = sum(rail["A"] * rail["V"] for rail in found.values() if len(rail) == 2)
    if sum_w <= 0:
        raise RefusedError("sensor", f"pmic: no rail in what vcgencmd says: {words[:80]!r}", "only a Pi 5 has them")
    return sum_w * PMIC_GAIN + PMIC_OFFSET_W


def open_nvml_counter(bus_id: Optional[str]) -> Counter:
    """Return the energy counter of a GPU."""
    gpu = whole_gpu(bus_id)
    if gpu.energy_j() == 0:
        raise RefusedError("sensor", f"nvml: the energy counter of {gpu.name()} reads 0", "read another sensor")
    return Counter("nvml", f"NVML energy counter of {gpu.name()}, between two of its ticks", gpu.energy_j)


def open_nvml_instant(bus_id: Optional[str]) -> Meter:
    """Return the instantaneous power of a GPU."""
    gpu = whole_gpu(bus_id)
    gpu.instant_w()
    method = f"NVML instantaneous power of {gpu.name()}"
    return Meter("nvml", method, gpu.instant_w, PERIOD_S, INSTANT_SETTLE_S)


def open_nvml_average(bus_id: Optional[str]) -> Meter:
    """Return the power of a GPU that its driver averages."""
    gpu = whole_gpu(bus_id)
    gpu.average_w()
    method = f"NVML power of {gpu.name()}, averaged over 1 s"
    return Meter("nvml", method, gpu.average_w, PERIOD_S, AVERAGE_SETTLE_S)


def whole_gpu(bus_id: Optional[str]) -> Gpu:
    """Return a GPU whose power is its own."""
    gpu = Nvml().gpu(bus_id)
    gpu.refuse_slices()
    return gpu


def open_hwmon(total_rail: Optional[str], sum_rails: List[str], root: Path = ROOT) -> Meter:
    """Return the power of the board: the rail that feeds all others, or those that add up to it; never both."""
    found = rails(root)
    if not found:
        raise RefusedError("sensor", "hwmon: no INA3221 or INA238 power monitor", "only Jetson boards have them")
    names = [total_rail] if total_rail in found else list(sum_rails)
    missing = [name for name in names if name not in found]
    if missing or not names:
        wanted = ", ".join(missing) or total_rail or "none named"
        remedy = "set sensors.total_rail or sensors.sum_rails in the board file to this board's rails"
        raise RefusedError("sensor", f"hwmon: the rails are {', '.join(found)}, wanted: {wanted}", remedy)
    chosen = [found[str(name)] for name in names]

    def read_w() -> float:
        return sum(rail.read_w() for rail in chosen)

    read_w()
    method = f"hwmon power rail{'s' if len(names) > 1 else ''} {' + '.join(map(str, names))}"
    return Meter("hwmon", method, read_w, PERIOD_S, max(rail.settle_s for rail in chosen))


def open_rapl(root: Path = ROOT) -> Counter:
    """Return the energy of the processor packages, each counted once; other domains contain or repeat them."""
    zones: Dict[str, Path] = {}
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:*")):
        name = text(zone / "name")
        if name.startswith("package-") and not mirrored(zone, [zones[other] for other in zones if "-die-" in name]):
            zones.setdefault(name, zone)
    if not zones:
        raise RefusedError("sensor", "rapl: no processor package", "virtual machines and ARM boards have none")
    last = {zone: microjoules(zone) for zone in zones.values()}
    spans = {zone: number(zone / "max_energy_range_uj") or 0.0 for zone in zones.values()}
    total = [0.0]

    def read_j() -> float:
        for zone, before in last.items():
            last[zone] = microjoules(zone)
            grown = last[zone] - before
            total[0] += grown if grown >= 0 else grown + spans[zone]
        return total[0] / 1e6

    return Counter("rapl", f"RAPL energy counter of {' + '.join(zones)}: cores and caches, not the DRAM", read_j)


def mirrored(zone: Path, others: List[Path]) -> bool:
    """Tell whether a die shows the counter of another, as those of AMD do: they read the same."""
    return any(abs(microjoules(zone) - microjoules(other)) < MIRROR_UJ for other in others)


def microjoules(zone: Path) -> float:
    """Return the counter of one zone."""
    try:
        return float((zone / "energy_uj").read_text())
    except PermissionError:
        raise RefusedError("sensor", f"rapl: only root may read {zone / 'energy_uj'}", GRANT_RAPL) from None
    except (OSError, ValueError) as error:
        raise RefusedError("sensor", f"rapl: {error}", "this counter is broken") from None


def open_pmic() -> Meter:
    """Return the power of a Raspberry Pi 5 by its power chip."""
    program = shutil.which("vcgencmd")
    if program is None:
        raise RefusedError("sensor", "pmic: there is no vcgencmd", "only a Raspberry Pi 5 has it, with Raspberry Pi OS")

    def read_w() -> float:
        try:
            done = subprocess.run([str(program), "pmic_read_adc"], stdout=subprocess.PIPE, timeout=5, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RefusedError("sensor", f"pmic: {error}", "add the user to the group video") from None
        return pmic_w(done.stdout.decode(errors="replace"))

    read_w()
    method = "PMIC rails of the Raspberry Pi 5, with a fitted correction for what they leave out"
    return Meter("pmic", method, read_w, PMIC_PERIOD_S, PMIC_SETTLE_S)


Opener = Callable[[], Sensor]
Refusals = List[Dict[str, str]]


def line_up(rule: Dict[str, Any], bus_id: Optional[str], root: Path = ROOT) -> Tuple[List[Sensor], Refusals]:
    """Return the sensors that a rule (backend, total_rail, sum_rails) names, best first, and why others do not work."""
    total, parts = rule.get("total_rail"), list(rule.get("sum_rails") or ())
    known: Dict[str, List[Opener]] = {
        "nvml": [
            lambda: open_nvml_counter(bus_id),
            lambda: open_nvml_instant(bus_id),
            lambda: open_nvml_average(bus_id),
        ],
        "hwmon": [lambda: open_hwmon(total, parts, root)],
        "rapl": [lambda: open_rapl(root)],
        "pmic": [open_pmic],
        "none": [],
    }
    if rule.get("backend") not in known:
        raise RefusedError("request", f"no sensor is called {rule.get('backend')!r}", "use edgelean of this version")
    found = [_opened(opener) for opener in known[rule["backend"]]]
    return [one for one in found if not isinstance(one, dict)], [one for one in found if isinstance(one, dict)]


def examine(root: Path = ROOT) -> List[Dict[str, Any]]:
    """Try every kind of sensor and say what was found."""
    names = list(rails(root))
    kinds: List[Tuple[str, Opener]] = [
        ("nvml counter", lambda: open_nvml_counter(None)),
        ("nvml instant", lambda: open_nvml_instant(None)),
        ("nvml average", lambda: open_nvml_average(None)),
        ("hwmon", lambda: open_hwmon(None, names, root)),
        ("rapl", lambda: open_rapl(root)),
        ("pmic", open_pmic),
    ]
    found = []
    for kind, opener in kinds:
        sensor = _opened(opener)
        if isinstance(sensor, dict):
            found.append({"name": kind, "usable": False, **sensor})
        else:
            detail = f"rails {', '.join(names)}" if kind == "hwmon" else sensor.method
            found.append({"name": kind, "usable": True, "detail": detail, "remedy": ""})
    return found


def _opened(opener: Opener) -> Union[Sensor, Dict[str, str]]:
    """Return a sensor that followed a few milliseconds (some counters of virtual machines stand still), or why not."""
    try:
        sensor = opener()
        sensor.over(lambda: time.sleep(1e-3), 5e-3)
    except RefusedError as error:
        return {"detail": str(error), "remedy": error.remedy}
    return sensor
