"""Several sensors in line: when one dies in the middle of a run, the next one goes on, and every figure says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from edgelean.errors import DeviceError, InputError
from edgelean.sensors.window import Energy, Sensor, Work

OnLoss = Literal["next", "stop"]
"""What to do when a sensor fails: go on with the next one in line, or stop where the run can be resumed."""


class SensorChain:
    """Sensors of one board, best first, that are one :class:`~edgelean.sensors.window.Sensor` together.

    Parameters
    ----------
    sensors
        At least one.
    on_loss
        ``"next"``: when a sensor fails, its window is measured once more with the next one in line, and from then on
        the method of every energy names what was lost. ``"stop"``: the error is raised; the run can be resumed.
    """

    def __init__(self, sensors: Sequence[Sensor], on_loss: OnLoss = "next") -> None:
        if not sensors:
            raise InputError("a chain of sensors needs at least one sensor, found none: `edgelean doctor` lists them")
        self._waiting = tuple(sensors)
        self._on_loss = on_loss
        self._lost: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the sensor that is read now."""
        return self._waiting[0].name

    @property
    def method(self) -> str:
        """How it is read now, and since which failures."""
        method = self._waiting[0].method
        return f"since {' and '.join(self._lost)}: {method}" if self._lost else method

    def over(self, work: Work, seconds: float) -> Energy:
        """Repeat ``work`` for at least ``seconds`` in front of the first sensor in line that does not fail.

        Raises
        ------
        DeviceError
            The last sensor in line failed, or any sensor where the chain was told to stop. An error of the work itself
            is no failure of the sensor and is raised as it is.
        """
        while True:
            guarded = _Guarded(work)
            try:
                energy = self._waiting[0].over(guarded, seconds)
            except DeviceError as error:
                if guarded.failed:
                    raise
                self.leave(error)
            else:
                return replace(energy, method=self.method)

    def leave(self, error: DeviceError) -> None:
        """Go on without the sensor that is read now, because of this error of it.

        Raises
        ------
        DeviceError
            There is no other one, or the chain was told to stop.
        """
        first, *others = self._waiting
        reason = " ".join(str(error).split())
        lost = f"{first.method} failed ({reason})"
        if self._on_loss == "stop":
            raise DeviceError(
                f"the sensor {first.name} was lost in the middle, and the run was told to stop then: {reason}; "
                "what is done so far is kept, resume the run when the sensor works again"
            ) from error
        if not others:
            before = "".join(f"; before that, {words}" for words in reversed(self._lost))
            raise DeviceError(f"no sensor is left, the last one failed: {reason}{before}") from error
        self._waiting, self._lost = tuple(others), (*self._lost, lost)


class _Guarded:
    """Work that remembers whether it failed itself."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.failed = False

    def __call__(self) -> None:
        try:
            self._work()
        except BaseException:
            self.failed = True
            raise
