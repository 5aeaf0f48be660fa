"""A board over ssh as a target: the agent measures there, the statistics and the judgement are made here."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from typing import Any

from edgelean.board import Board, Precision
from edgelean.board.cost import Cost, Operator, predict
from edgelean.errors import DeviceError, InputError
from edgelean.reading import Figure, Provenance, Reading
from edgelean.sensors.chain import OnLoss
from edgelean.sensors.kernel_files import processor_name
from edgelean.sensors.machine import conditions, disturbance, energy_disturbance
from edgelean.sensors.protocol import EnergyPerCall, EnergyProtocol, Estimate, per_call
from edgelean.sensors.window import Energy
from edgelean.target.agent import Agent, AgentError, Say, install_agent, one_file, packed
from edgelean.target.candidate import Candidate
from edgelean.target.describe import Device, device_from, glance_of, is_same, laid_out, recognised
from edgelean.target.latency import Patience, Timing, all_samples, percentile_interval, pooled
from edgelean.target.local import Routine, doubts, quality
from edgelean.target.modelled import modelled_figure
from edgelean.target.remote import Ssh, parse_address

STEADY_CLOCK = 0.05
"""A GPU whose clock moves by a larger share while it is timed is not one machine but several."""
INSTALL = (
    "python3 -m venv --system-site-packages ~/.local/share/edgelean && "
    "~/.local/share/edgelean/bin/pip install numpy onnxruntime"
)

ON_A_BOARD = Routine(
    repeats=2,
    attempts=2,
    pause_s=0.05,
    rest_s=1.0,
    patience=Patience(warm_up_s=0.2, least_s=0.2, cap_s=1.0),
    energy=EnergyProtocol(),
)
"""Some 5 s with the energy, gross and net of the idle power."""

_log = logging.getLogger(__name__)


@dataclass
class SshTarget:
    """A board that can be reached over ssh; :func:`open_ssh` connects to it.

    Attributes
    ----------
    agent
        Measures there.
    device
        What the board says of itself.
    board, precision, batch, percentile
        As the profile wants them.
    runtime
        What the candidate runs in there.
    routine
        How one reading goes.
    on_loss
        What happens when a sensor fails in the middle of a reading: the next in line, or a stop.
    """

    agent: Agent
    device: Device
    board: Board
    precision: Precision
    batch: int
    percentile: float
    runtime: str
    routine: Routine = ON_A_BOARD
    on_loss: OnLoss = "next"
    provenance: Provenance = Provenance.MEASURED
    _sent: set[str] = field(default_factory=set, repr=False)
    _power_mode: str | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The word by which ``--target`` names it."""
        return self.agent.line.words

    @property
    def precision_there(self) -> Precision:
        """The precision in which the candidate really runs: FP32 stands in for one that the runtime there has not."""
        known: dict[str, tuple[Precision, ...]] = {
            "onnxruntime CPU": ("fp32", "int8"),
            "onnxruntime CUDA": ("fp32", "fp16"),
        }
        computed = known.get(self.runtime, ("fp32", "fp16", "int8"))
        return self.precision if self.precision in computed else "fp32"

    def predict(self, operators: Iterable[Operator]) -> Cost:
        """Return the predicted cost on the board."""
        return predict(operators, self.board, self.precision, self.batch)

    def close(self) -> None:
        """Remove what was sent to the board, as far as it can be reached, and end the connection.

        Engines stay for a day: they take minutes to build.
        """
        try:
            self.agent.ask("clean", files=sorted(self._sent))
        except DeviceError as error:
            _log.warning("what was sent to the board stays there for a day: %s", error)
        finally:
            self.agent.line.close()

    def read(self, candidate: Candidate) -> Reading:
        """Measure the candidate on the board; a reading that is noisy after all attempts says so in its ``noise``.

        Raises
        ------
        DeviceError
            The board cannot be reached, does not run the candidate, its sensor failed, or its power mode was changed
            since the first reading.
        """
        model, feeds = one_file(candidate.onnx(self.precision_there)), packed(candidate.sample())
        for attempt in range(self.routine.attempts):
            if attempt > 0:
                self.agent.sleep(self.routine.rest_s)
            answer = self._measured(model, feeds)
            try:
                reading = self._reading(answer, candidate.operators)
            except (LookupError, ArithmeticError, TypeError, ValueError) as error:
                raise DeviceError(
                    f"{self.name}: the agent's answer cannot be read ({error!r}): connect again"
                ) from error
            if not reading.noise:
                break
        return reading

    # -- over there ----------------------------------------------------------------------------------------------------

    def _measured(self, model: bytes, feeds: bytes) -> dict[str, Any]:
        """Let the agent measure; files that it does not have are sent."""
        files = {f"{sha256(model).hexdigest()}.onnx": model, f"{sha256(feeds).hexdigest()}.npz": feeds}
        try:
            return self._ask(*files)
        except AgentError as error:
            if error.kind != "absent":
                raise
            absent = error.detail.split()
        for name in absent:
            self._store(name, files[name])
        return self._ask(*files)

    def _ask(self, model: str, feeds: str) -> dict[str, Any]:
        routine, sensors = self.routine, self.board.sensors
        energy = None
        if sensors.backend != "none":
            energy = {"sensor": sensors.model_dump(mode="json"), "on_loss": self.on_loss, **asdict(routine.energy)}
        return self.agent.ask(
            "measure",
            model=model.partition(".")[0],
            feeds=feeds.partition(".")[0],
            runtime=self.runtime,
            repeats=routine.repeats,
            pause_s=routine.pause_s,
            patience={**asdict(routine.patience), "percentile": self.percentile},
            energy=energy,
        )

    def _store(self, name: str, content: bytes) -> None:
        stem, _, ending = name.partition(".")
        self.agent.tell(f"{self.name}: sending {len(content) / 1e6:.2f} MB")
        self._sent.add(stem)
        self.agent.ask("store", content, sha256=stem, ending=ending, size=len(content))

    # -- here ----------------------------------------------------------------------------------------------------------

    def _reading(self, answer: Mapping[str, Any], operators: tuple[Operator, ...]) -> Reading:
        timings = tuple(timing_of(repeat, self.percentile) for repeat in answer["repeats"])
        words, noise = self._circumstances(answer, timings)
        self._refuse_changed_mode(words.get("power mode"))
        energy = energy_of(answer["energy"])
        interval = pooled(timings, self.percentile)
        calls = len(all_samples(timings))
        method = (
            f"{words['runtime']} on {self.device.words}, {calls} calls in {len(timings)} sessions, each after a warm-up"
        )
        gross, net = self._energies(energy, operators)
        return Reading(
            latency=Figure(interval.value, interval.low, interval.high, "ms", self.provenance, method),
            energy=gross,
            energy_net=net,
            batch=self.batch,
            percentile=self.percentile,
            samples_ms=tuple(all_samples(timings)),
            conditions=words,
            noise=noise,
        )

    def _circumstances(self, answer: Mapping[str, Any], timings: Sequence[Timing]) -> tuple[dict[str, str], str]:
        """Return the conditions of a reading and what disturbed it."""
        before, after = glance_of(self.device, answer["before"]), glance_of(self.device, answer["after"])
        noise = disturbance(before, after) or moved(answer["clocks_mhz"]) or doubts(timings, answer["paces_s"])
        energy = answer["energy"]
        if energy and energy["windows"]:
            disturbed = disturbance if energy["sensor"] == "nvml" else energy_disturbance
            noise = noise or disturbed(*(glance_of(self.device, energy[when]) for when in ("before", "after")))
        with laid_out(self.device.files) as root:
            processor = processor_name(root / "proc/cpuinfo")
        words = {
            "processor": processor,
            "runtime": str(answer["runtime"]),
            "threads": str(answer["threads"]),
            "precision": self.precision_there,
            **conditions(before, after),
            **quality(timings, self.percentile),
        }
        if self.runtime != "onnxruntime CPU":
            words["gpu"] = self.device.gpu or self.device.words
        if energy and energy["refused"]:
            words["sensors that failed"] = "; ".join(f"{one['detail']}: {one['remedy']}" for one in energy["refused"])
        return words, noise

    def _refuse_changed_mode(self, mode: str | None) -> None:
        """Raise where the board is no longer the one of the first reading."""
        self._power_mode = self._power_mode or mode
        if mode and mode != self._power_mode:
            raise DeviceError(
                f"{self.name}: the power mode of the board was {self._power_mode!r} and is now {mode!r}: readings of "
                "two modes cannot be compared, set it back (sudo nvpmodel -m NUMBER) and resume the run"
            )

    def _energies(
        self, energy: EnergyPerCall | None, operators: tuple[Operator, ...]
    ) -> tuple[Figure | None, Figure | None]:
        """Return the energy of one inference, gross and net; without a sensor the cost model's, where it has one."""
        if energy is not None:
            gross = self._per_inference(energy.gross_mj, f"{energy.method}; gross")
            if energy.net_mj is None:
                return gross, None
            return gross, self._per_inference(energy.net_mj, f"{energy.method}; net of the idle power")
        try:
            cost = self.predict(operators)
        except InputError:
            return None, None
        return modelled_figure(cost.energy_mj, "mJ", self.board, cost), None

    def _per_inference(self, per_call_mj: Estimate, method: str) -> Figure:
        value, low, high = (mj / self.batch for mj in per_call_mj)
        return Figure(value, low, high, "mJ", self.provenance, method)


def open_ssh(
    spec: str,
    board: Board,
    precision: Precision,
    batch: int,
    percentile: float,
    *,
    routine: Routine = ON_A_BOARD,
    on_loss: OnLoss = "next",
    tell: Say = _log.info,
) -> SshTarget:
    """Connect to a board, bring the agent there, and see whether it is the board that is meant.

    Parameters
    ----------
    spec
        ``ssh://[user@]host[:port]``; the host may be a name from ~/.ssh/config.
    board, precision, batch, percentile
        As the profile wants them.
    routine
        How one reading goes.
    on_loss
        What happens when a sensor fails in the middle of a reading: the ``next`` in line goes on, or the run has to
        ``stop``.
    tell
        Gets words about what happens now.

    Raises
    ------
    InputError
        The text is no address, or the device is not the board of the profile.
    DeviceError
        The board cannot be reached, or has no runtime for its models.
    """
    line = Ssh(parse_address(spec), tell)
    try:
        agent = Agent(line, install_agent(line), tell)
        device = device_from(agent.ask("facts"))
        refuse_another(device, board, line.words)
        runtime = runtime_for(device, board, line.words)
    except BaseException:
        line.close()
        raise
    return SshTarget(agent, device, board, precision, batch, percentile, runtime, routine, on_loss)


def refuse_another(device: Device, board: Board, where: str) -> None:
    """Raise InputError where a device is not the board; a board file without rules to know it by fits everything."""
    rules = [rule for rule in (*board.match.device_tree, board.match.nvml_name, board.match.processor) if rule]
    if not rules or is_same(device, board):
        return
    other = recognised(device)
    instead = (
        f"name the board {other.name!r} in the profile" if other else f"`edgelean boards probe {where}` describes it"
    )
    raise InputError(
        f"--target {where}: wanted the board {board.name} ({board.title}), which is known by {' or '.join(rules)}, "
        f"found {device.words}: {instead}, or use --target modelled"
    )


def runtime_for(device: Device, board: Board, where: str) -> str:
    """Return what candidates run in on a board; a GPU board is never measured on its processor.

    Raises
    ------
    DeviceError
        It has none; the message says what to install.
    """
    found = ", ".join(f"{name} {version}" for name, version in device.packages.items() if version) or "none of them"
    if board.kind == "cpu":
        if device.packages.get("onnxruntime") and device.packages.get("numpy"):
            return "onnxruntime CPU"
        raise DeviceError(f"{where}: the board needs numpy and onnxruntime, it has {found}: there, run `{INSTALL}`")
    tensorrt = device.packages.get("tensorrt") or ""
    if device.packages.get("numpy") and tensorrt.split(".")[0].isdecimal() and int(tensorrt.split(".")[0]) >= 10:
        return "tensorrt"
    if "CUDAExecutionProvider" in device.providers:
        return "onnxruntime CUDA"
    raise DeviceError(
        f"{where}: the board needs numpy and TensorRT 10 or newer, or an onnxruntime with CUDA, it has {found}: on a "
        "Jetson `sudo apt install nvidia-jetpack` of JetPack 6 or newer, elsewhere `pip install tensorrt`"
    )


def timing_of(repeat: Mapping[str, Any], percentile: float) -> Timing:
    """Return what the agent timed in one session."""
    samples = tuple(float(sample) for sample in repeat["samples_ms"])
    return Timing(samples, percentile_interval(samples, percentile), bool(repeat["narrow"]))


def energy_of(answer: Mapping[str, Any] | None) -> EnergyPerCall | None:
    """Return the energy of a call from the windows that the agent read; None where no sensor works.

    Raises
    ------
    DeviceError
        The sensor read the same whether there was work or not.
    """
    if not answer or not answer["windows"]:
        return None
    windows = [Energy(method=answer["method"], **window) for window in answer["windows"]]
    idle = [Energy(method=answer["method"], **window) for window in answer["idle"]]
    if idle and len({window.watts for window in (*windows, *idle)}) == 1:
        raise DeviceError(
            f"{answer['method']}: it read the same {windows[0].watts:.3g} W with work and without: it stands still, or "
            "looks at another device: `edgelean boards probe` shows the others"
        )
    return per_call(windows, idle_power(idle) if idle else None)


def idle_power(windows: Sequence[Energy]) -> Estimate:
    """Return the power of windows without work, in W with its interval.

    A second counts as a call, so that mJ per call are mW.
    """
    milliwatts = per_call([replace(window, calls=window.seconds) for window in windows], None).gross_mj
    return Estimate(*(value / 1e3 for value in milliwatts))


def moved(clocks_mhz: Sequence[float]) -> str:
    """Return that the clock of the GPU moved while calls were timed, and what to do; nothing where it did not."""
    if not clocks_mhz:
        return ""
    least, most = min(clocks_mhz), max(clocks_mhz)
    if most - least <= STEADY_CLOCK * statistics.median(clocks_mhz):
        return ""
    return (
        f"the GPU's clock moved between {least:.0f} and {most:.0f} MHz while calls were timed: `sudo jetson_clocks` "
        "holds that of a Jetson, `sudo nvidia-smi -lgc MHZ` that of a card"
    )
