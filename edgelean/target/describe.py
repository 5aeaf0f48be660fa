"""From what a device says of itself to a board: which one of the shelf it is, and what can be read off it.

A device says it with small files of its kernel, as they are. Here they are laid out again under a folder, and the code
that reads this machine's own files reads those.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from edgelean.board import Board, Fact, board_names, load_board
from edgelean.board.model import Alignment, Compute, Launch, Match, Memory, Power, PowerMode, Sensors, Software
from edgelean.errors import DeviceError
from edgelean.sensors.gpu_state import REASONS, GpuState
from edgelean.sensors.hwmon import find_rails, usual_total
from edgelean.sensors.identify import THIS_MACHINE, is_board
from edgelean.sensors.jetson import look_at_jetson
from edgelean.sensors.kernel_files import compatible_of, model_of, processor_name, text_of
from edgelean.sensors.machine import Glance, look
from edgelean.sensors.window import Energy
from edgelean.target.agent import Agent, Say, agent_folder, install_agent
from edgelean.target.remote import Here, Line, Ssh, parse_address

IDLE_S = 2.0
MOST_FILES, LONGEST_FILE = 5000, 1 << 16
_SIBLINGS = "sys/devices/system/cpu/cpu*/topology/thread_siblings_list"


@dataclass(frozen=True)
class Finding:
    """One kind of sensor that a device was asked for: whether it works, what was found, and how to get it."""

    name: str
    usable: bool
    detail: str
    remedy: str


@dataclass(frozen=True)
class Device:
    """What the agent says of the device that it runs on.

    Attributes
    ----------
    machine, system, python
        Architecture, kernel and Python.
    packages
        Version of numpy, onnxruntime and tensorrt; None where it cannot be imported.
    providers
        What onnxruntime offers.
    gpus
        What NVML tells of each GPU: name, driver, memory_bytes, compute_capability, power_limit_w.
    sensors
        Every kind of sensor.
    files
        Small files of its kernel by their paths.
    """

    machine: str
    system: str
    python: str
    packages: Mapping[str, str | None]
    providers: tuple[str, ...]
    gpus: tuple[Mapping[str, Any], ...]
    sensors: tuple[Finding, ...]
    files: Mapping[str, str]

    @property
    def gpu(self) -> str:
        """The names of its NVIDIA GPUs; empty without one, and on a Jetson, which is a GPU as a whole."""
        if "nvidia,tegra" in self.files.get("proc/device-tree/compatible", ""):
            return ""
        return ", ".join(dict.fromkeys(str(gpu["name"]) for gpu in self.gpus))

    @property
    def words(self) -> str:
        """What a person would call it."""
        with laid_out(self.files) as root:
            return model_of(root) or self.gpu or processor_name(root / "proc/cpuinfo")

    def usable(self, sensor: str) -> bool:
        """Return whether a kind of sensor works."""
        return any(found.usable and found.name.split()[0] == sensor for found in self.sensors)


def device_from(answer: Mapping[str, Any]) -> Device:
    """Return what an agent's answer to ``facts`` says.

    Raises
    ------
    DeviceError
        It is no such answer.
    """
    try:
        return Device(
            machine=answer["machine"],
            system=answer["system"],
            python=answer["python"],
            packages=answer["packages"],
            providers=tuple(answer["providers"]),
            gpus=tuple(answer["gpus"]),
            sensors=tuple(Finding(**found) for found in answer["sensors"]),
            files={**answer["files"], **answer["state"]["files"]},
        )
    except (KeyError, TypeError) as error:
        raise DeviceError(f"the agent's description of its board cannot be read ({error}): connect again") from None


def probe_device(target: str, name: str, tell: Say) -> tuple[Device, Board]:
    """Ask a device what it is, let its idle power be read, and return both what it says and the board that it is.

    Parameters
    ----------
    target
        ``"local"``, or ``"ssh://[user@]host"``.
    name
        How the board is to be called.
    tell
        Gets words about what happens now.

    Raises
    ------
    InputError
        There is no such target.
    DeviceError
        The device cannot be reached.
    """
    here = target == "local"
    line: Line = Here() if here else Ssh(parse_address(target), tell)
    try:
        agent = Agent(line, (sys.executable, str(agent_folder() / "agent.py")) if here else install_agent(line), tell)
        device = device_from(agent.ask("facts"))
        board = describe(device, name, None)
        answer = agent.ask("idle", sensor=board.sensors.model_dump(mode="json"), seconds=IDLE_S)
        agent.ask("clean", files=[])
    finally:
        line.close()
    windows = [Energy(method=answer["method"], **window) for window in answer["idle"]]
    return device, describe(device, name, windows[0] if windows else None)


@contextmanager
def laid_out(files: Mapping[str, str]) -> Iterator[Path]:
    """Yield a folder with these files in it, as if it was the root of the device.

    Raises
    ------
    DeviceError
        A path leads out of the folder, or there is too much: nothing that a board says may do harm here.
    """
    with tempfile.TemporaryDirectory(prefix="edgelean-") as folder:
        root = Path(folder)
        if len(files) > MOST_FILES or any(len(content) > LONGEST_FILE for content in files.values()):
            raise DeviceError(f"the board sent {len(files)} files of its kernel: that is not an agent of edgelean")
        for path, content in files.items():
            parts = PurePosixPath(path).parts
            if not parts or parts[0] == "/" or ".." in parts or "\0" in path:
                raise DeviceError(f"the board sent a file named {path!r}: that is not an agent of edgelean")
            file = root.joinpath(*parts)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
        yield root


def glance_of(device: Device, state: Mapping[str, Any]) -> Glance:
    """Return the look that the agent took: the same values as :func:`edgelean.sensors.machine.look` has here.

    Parameters
    ----------
    device
        Has the files that never change.
    state
        What the agent sent: at_s, own_s, processors, files, throttled, gpu.
    """
    with laid_out({**device.files, **state["files"]}) as root:
        glance = look(root)
        siblings = {text_of(file) for file in root.glob(_SIBLINGS)}
    processors = glance.processors
    if processors is not None:
        count = int(state["processors"])
        processors = replace(processors, count=count, cores=min(len(siblings) or count, count))
    bits = re.fullmatch(r"throttled=0x([0-9a-fA-F]{1,8})", state["throttled"])
    return replace(
        glance,
        at_s=float(state["at_s"]),
        own_s=float(state["own_s"]),
        processors=processors,
        raspberry=int(bits[1], 16) if bits else None,
        gpu=None if state["gpu"] is None else _gpu_state(state["gpu"]),
    )


def _gpu_state(told: Mapping[str, Any]) -> GpuState:
    reasons = {kind: words for bit, (kind, words) in REASONS.items() if int(told["reasons"]) & bit}
    return GpuState(**{**told, "reasons": reasons})


def is_same(device: Device, board: Board) -> bool:
    """Return whether a device is a board: by the rules of its file, the GPUs being those that the device told."""
    match = board.match
    without = board.model_copy(update={"match": match.model_copy(update={"nvml_name": None})})
    with laid_out(device.files) as root:
        by_files = is_board(without, root) or match.processor == processor_name(root / "proc/cpuinfo")
    return by_files or (
        match.nvml_name is not None and any(re.search(match.nvml_name, str(gpu["name"])) for gpu in device.gpus)
    )


def recognised(device: Device) -> Board | None:
    """Return the board of the shelf that a device is, None where it is none of them."""
    boards = (load_board(name) for name in board_names() if name != THIS_MACHINE)
    return next((board for board in boards if is_same(device, board)), None)


def describe(device: Device, name: str, idle: Energy | None) -> Board:
    """Return a device as a board: what was read off it, what the shelf knows of its kind, and nothing that is neither.

    Parameters
    ----------
    device
        What it says of itself.
    name
        How the board is to be called.
    idle
        Energy of a time in which it did nothing; None where no sensor works.
    """
    known = recognised(device)
    with laid_out(device.files) as root:
        jetson = look_at_jetson(root)
        kind: Literal["gpu", "cpu"] = "gpu" if jetson or device.gpu else "cpu"
        return Board(
            name=name,
            title=known.title if known else device.words,
            kind=known.kind if known else kind,
            compute=known.compute if known else Compute(),
            memory=_memory(device, known, root),
            launch=known.launch if known else Launch(),
            alignment=known.alignment if known else Alignment(),
            power=_power(device, known, idle, root),
            sensors=_sensors(device, known, root),
            match=known.match if known else _match(device, root),
            software=_software(device, known, jetson.jetpack if jetson else None),
        )


def _read(value: float, source: str) -> Fact:
    return Fact(value=value, source=f"{source}, read on the board", confidence="measured")


def _memory(device: Device, known: Board | None, root: Path) -> Memory:
    memory = known.memory if known else Memory(shared=not device.gpu)
    if device.gpu:
        sizes = [gpu["memory_bytes"] for gpu in device.gpus if gpu["memory_bytes"]]
        size = _read(min(sizes) / 1e9, "the memory that NVML counts") if sizes else memory.capacity_gb
    else:
        found = re.search(r"^MemTotal:\s*(\d+) kB", text_of(root / "proc/meminfo"), re.MULTILINE)
        size = _read(int(found[1]) * 1024 / 1e9, "the memory that the kernel has") if found else memory.capacity_gb
    return memory.model_copy(update={"capacity_gb": size})


def _power(device: Device, known: Board | None, idle: Energy | None, root: Path) -> Power:
    power = known.power if known else Power()
    update: dict[str, Any] = {}
    limits = [gpu["power_limit_w"] for gpu in device.gpus if gpu["power_limit_w"]]
    if limits:
        update["max_w"] = _read(max(limits), "the power limit that NVML enforces")
    most = update.get("max_w", power.max_w)
    if idle is not None:
        update["idle_w"] = _read(idle.watts, f"{idle.method}, {idle.seconds:.1f} s without work")
        if most.value is not None and idle.watts > most.value:
            update["max_w"] = Fact(source=f"{most.value:g} W ({most.source}) is less than the board needs idle")
    modes = tuple(_modes(text_of(root / "etc/nvpmodel.conf")))
    if modes:
        update |= {"modes": modes, "modes_source": "nvpmodel.conf, read on the board"}
    return power.model_copy(update=update)


def _modes(conf: str) -> Iterator[PowerMode]:
    """Yield the power modes of a Jetson; a limit of 0 or -1 is none."""
    for number, name, body in re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>([^<]*)", conf):
        clock = re.search(r"^GPU\s+MAX_FREQ\s+(\d+)", body, re.MULTILINE)
        hertz = int(clock[1]) if clock else 0
        yield PowerMode(id=int(number), name=name, gpu_mhz=round(hertz / 1e6, 3) or None)


def _sensors(device: Device, known: Board | None, root: Path) -> Sensors:
    """Return the sensor that works; the rails that are the whole board come from the shelf, else from their names."""
    if known and known.sensors.backend != "none" and device.usable(known.sensors.backend):
        return known.sensors
    if device.gpu and device.usable("nvml"):
        return Sensors(backend="nvml")
    whole = usual_total(find_rails(root))
    if device.usable("hwmon") and whole:
        rails = {"total_rail": whole[0]} if len(whole) == 1 else {"sum_rails": whole}
        return Sensors(backend="hwmon", **rails)
    if device.usable("pmic"):
        return Sensors(backend="pmic")
    return Sensors(backend="rapl" if device.usable("rapl") and not device.gpu else "none")


def _match(device: Device, root: Path) -> Match:
    """Return by what a device would be known again."""
    if tree := compatible_of(root):
        return Match(device_tree=tree[:1])
    if device.gpu:
        return Match(nvml_name=f"^{re.escape(str(device.gpus[0]['name']))}$")
    return Match(processor=processor_name(root / "proc/cpuinfo"))


def _software(device: Device, known: Board | None, jetpack: str | None) -> Software:
    software = known.software if known else Software()
    told = next((gpu["compute_capability"] for gpu in device.gpus if gpu["compute_capability"]), None)
    tensorrt = device.packages.get("tensorrt")
    return software.model_copy(
        update={
            "compute_capability": told or software.compute_capability,
            "jetpack": jetpack or None,
            "tensorrt": ".".join(tensorrt.split(".")[:2]) if tensorrt else None,
            "cuda": software.cuda if jetpack and jetpack == software.jetpack else None,
            "python": ".".join(device.python.split(".")[:2]),
        }
    )
