"""``edgelean doctor``: what this machine offers, and how to get what is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgelean.cli.tables import print_json, print_table
from edgelean.errors import DeviceError

if TYPE_CHECKING:
    from edgelean.sensors import Probe

LEAST_FREE_GB = 2.0


@dataclass(frozen=True)
class Check:
    """One line of a table of the doctor.

    Attributes
    ----------
    name
        What was looked for.
    ready
        Whether it can be used.
    detail
        What was found.
    remedy
        How to get it; empty where it is ready.
    """

    name: str
    ready: bool
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class SensorCheck(Check):
    """One sensor.

    Attributes
    ----------
    tick_ms
        How often its value is renewed; None where that is not known.
    resolution
        The smallest difference that it tells apart.
    trust
        Whether its figures can be trusted, in a sentence that begins with yes, with care, or no.
    """

    tick_ms: float | None = None
    resolution: str = ""
    trust: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Show what this machine offers: runtimes, sensors and how far they can be trusted; how to get what is missing."""
    checks = examine()
    if as_json:
        print_json([asdict(check) for check in checks])
        return
    sensors = [check for check in checks if isinstance(check, SensorCheck)]
    others = [check for check in checks if not isinstance(check, SensorCheck)]
    rows = [(_yes(check), check.name, check.detail, check.remedy) for check in others]
    print_table("What this machine offers", ("", "what", "found", "how to get it"), rows, firm=2)
    columns = ("", "sensor", "tick", "resolution", "what it reads, how far to trust it; or what to do")
    print_table("What reads power here", columns, [_sensor_row(check) for check in sensors], firm=4)


def examine() -> tuple[Check, ...]:
    """Look at everything; nothing that is missing or broken raises."""
    from edgelean.sensors import probe_sensors

    return (
        Check("python", True, f"{platform.python_version()} on {platform.machine()}"),
        _check("torch", _torch, "pip install torch"),
        _check("CUDA in torch", _cuda, "on a machine with an NVIDIA GPU: pytorch.org/get-started"),
        _check("onnxruntime", _onnxruntime, "pip install onnxruntime"),
        _check("tensorrt", _version_of("tensorrt"), "pip install 'edgelean[tensorrt]'; JetPack brings its own"),
        _check("tensorrt_rtx", _version_of("tensorrt_rtx"), "pip install 'edgelean[tensorrt-rtx]'"),
        *(_sensor_check(probe) for probe in probe_sensors()),
        _check("codecarbon", _codecarbon, "pip install codecarbon"),
        _check("disk", _disk, "free some space"),
    )


def _sensor_check(probe: Probe) -> SensorCheck:
    return SensorCheck(
        f"sensor {probe.name}",
        probe.usable,
        probe.detail,
        probe.remedy,
        probe.tick_ms,
        probe.resolution,
        probe.trust,
    )


def _yes(check: Check) -> str:
    return "yes" if check.ready else "no"


def _sensor_row(check: SensorCheck) -> tuple[str, ...]:
    """Return the row of a sensor: what it reads above, and below it how far to trust it, or what to do."""
    tick = "" if check.tick_ms is None else f"{check.tick_ms:.3g} ms"
    resolution = check.resolution if check.ready else ""
    below = f"Trust: {check.trust}" if check.ready else f"-> {check.remedy}"
    return (_yes(check), check.name.removeprefix("sensor "), tick, resolution, f"{check.detail}\n{below}")


def _check(name: str, look: Callable[[], str], remedy: str) -> Check:
    """Look, and turn whatever goes wrong into a line of the table."""
    try:
        return Check(name, True, look())
    except ImportError:
        return Check(name, False, "not installed", remedy)
    except DeviceError as error:
        return Check(name, False, str(error), remedy)
    except Exception as error:  # a broken installation may raise anything, and showing it is the purpose
        first_line = str(error).strip().split("\n")[0]
        return Check(name, False, f"{type(error).__name__}: {first_line}", remedy)


def _torch() -> str:
    import torch

    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        raise DeviceError("torch sees no GPU, training runs on the processor")
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _onnxruntime() -> str:
    import onnxruntime

    return f"{onnxruntime.__version__}: {', '.join(onnxruntime.get_available_providers())}"


def _codecarbon() -> str:
    return f"{importlib.metadata.version('codecarbon')}, used offline for the energy of the training"


def _version_of(module: str) -> Callable[[], str]:
    """Return a look at a module that really imports it, because a package without its libraries is of no use."""
    return lambda: str(importlib.import_module(module).__version__)


def _disk() -> str:
    folder = Path.cwd()
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < LEAST_FREE_GB:
        raise DeviceError(f"only {free_gb:.1f} GB free in {folder}, a run wants {LEAST_FREE_GB:g} GB")
    return f"{free_gb:.1f} GB free in {folder}"
