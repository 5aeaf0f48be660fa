"""The errors a person can meet. Each one says what was wanted, what was found and what to do."""

from __future__ import annotations


class EdgeleanError(Exception):
    """Base of every error that edgelean raises on purpose.

    Attributes
    ----------
    exit_code
        What the command line returns when this error ends it.
    """

    exit_code = 2


class InputError(EdgeleanError, ValueError):
    """A profile, board, recipe, option or data set cannot be used as it is."""


class MissingError(EdgeleanError, FileNotFoundError):
    """A named thing does not exist: a file, a profile, a run."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class DivergenceError(EdgeleanError, ArithmeticError):
    """The training produced a loss that is not a finite number."""


class LawError(EdgeleanError, RuntimeError):
    """A cut model does not compute what the masked model computes: the cut is refused."""

    exit_code = 4


class VerificationError(EdgeleanError, RuntimeError):
    """An exported artifact is not as good as the trained model."""

    exit_code = 4


class DeviceError(EdgeleanError, RuntimeError):
    """A device, runtime or sensor failed while it was needed."""

    exit_code = 5
