"""The Raspberry Pi 5: its power management chip tells voltage and current of each rail through ``vcgencmd``.

The rails are what the chip puts out. What the board takes in is more, by the losses of the chip and by what is
connected before it (USB); a straight line through readings of a meter at the USB-C plug accounts for that, measured on
one Raspberry Pi 5 by github.com/jfikar/RPi5-power.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping

from edgelean.sensors.window import Clock, PowerSensor, SensorError

COMMAND = ("vcgencmd", "pmic_read_adc")
PERIOD_S = 0.1
"""The command needs 10 to 25 ms, most of it in the firmware; more often, it would slow down what is measured."""
GAIN, OFFSET_W = 1.1451, 0.5879
TIMEOUT_S = 5.0

_LINE = re.compile(r"\s*(\S+)_([AV])\s+(?:current|volt)\(\d+\)=(\d+(?:\.\d+)?)[AV]\s*")
_JOIN_GROUP = 'sudo usermod -aG video "$USER", and log in again'


def open_pmic(ask: Callable[[], str] | None = None, clock: Clock = time.perf_counter) -> PowerSensor:
    """Return a sensor of the power of a whole Raspberry Pi 5.

    Parameters
    ----------
    ask
        What returns the output of ``vcgencmd pmic_read_adc``; the command itself where none is given.
    clock
        Monotonic seconds.

    Raises
    ------
    SensorError
        There is no such command or no such chip, or this user may not ask it.
    """
    ask = ask or run_command

    def read_w() -> float:
        return input_power_w(parse_rails(ask()))

    rails = parse_rails(ask())
    method = (
        f"Raspberry Pi 5 power chip, {len(rails)} rails, scaled to the input of the board "
        f"({GAIN:g} x sum + {OFFSET_W:g} W, a fit to one board), sampled every {PERIOD_S * 1e3:.0f} ms"
    )
    return PowerSensor("pmic", method, read_w, clock, PERIOD_S)


def parse_rails(output: str) -> Mapping[str, float]:
    """Return the power in W of each rail that has both a voltage and a current.

    Raises
    ------
    SensorError
        There is no such rail: only the Raspberry Pi 5 has a chip that tells them.
    """
    values: dict[str, dict[str, float]] = {"A": {}, "V": {}}
    for line in output.splitlines():
        if match := _LINE.fullmatch(line):
            values[match[2]][match[1]] = float(match[3])
    rails = {name: amperes * values["V"][name] for name, amperes in values["A"].items() if name in values["V"]}
    if not sum(rails.values()) > 0:
        first_line = output.strip().split("\n")[0][:100]
        raise SensorError(
            f"vcgencmd pmic_read_adc tells the power of no rail ({first_line or 'it printed nothing'})",
            "only a Raspberry Pi 5 has this chip; on another board use another sensor",
        )
    return rails


def input_power_w(rails: Mapping[str, float]) -> float:
    """Return the power in W that the board takes in, from the powers of its rails."""
    return GAIN * sum(rails.values()) + OFFSET_W


def run_command() -> str:
    """Return what ``vcgencmd pmic_read_adc`` prints.

    Raises
    ------
    SensorError
        The command is missing, failed, or does not answer; the remedy says how to be allowed to run it.
    """
    if shutil.which(COMMAND[0]) is None:
        raise SensorError("no command vcgencmd", "only a Raspberry Pi has it (sudo apt install raspi-utils)")
    try:
        done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SensorError(f"{' '.join(COMMAND)}: {error}", "restart the board") from error
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").split("\n")[0]
        raise SensorError(f"{' '.join(COMMAND)}: {said}", _JOIN_GROUP)
    return done.stdout
