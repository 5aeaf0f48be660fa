"""Why torch.export cannot trace a model: the line of the user's code, what is wrong with it, and what to do."""

from __future__ import annotations

import io
import logging
import os
import re
import sysconfig
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from edgelean.errors import InputError

_CHATTY_LOGGERS = ("torch", "onnxscript", "onnx_ir")

BRANCH = (
    "decides by the value of a tensor",
    "compute both sides and choose with torch.where, use torch.cond, or decide outside of forward",
)
NUMBER = (
    "turns the value of a tensor into a Python number",
    "keep it a tensor, and choose with torch.where instead of if; a count or a size has to be the same for all inputs",
)
SHAPE = (
    "makes a tensor whose shape depends on the values of another",
    "keep the shape fixed: multiply by a mask or use torch.where instead of selecting, torch.topk for a fixed number",
)
NUMPY = (
    "takes a tensor out of torch to numpy",
    "use the function of torch that does the same, or do this to the data before the model",
)
OPERATOR = (
    "calls an operator that torch.export does not know",
    "replace it by operators of torch, or register a fake kernel for it with torch.library.register_fake",
)
SCRIPT = (
    "is compiled by torch.jit, which hides its code",
    "give the nn.Module as it was before torch.jit.script or torch.jit.trace",
)
ONE_BATCH = (
    "holds for one batch size only",
    "take the batch from x.shape[0], or write -1 for it",
)
FAILS = "fails while it is traced"
UNKNOWN = "rewrite this line with operators of torch, on tensors whose shapes do not depend on the data"

_CONVERTED = re.compile(r"\.(item|tolist)\(|\b(int|float|bool|len|range)\(")
_DECISION = re.compile(r"^\s*(if|elif|while|assert|for)\b|\bif\b.*\belse\b|\bassert\b|\b(and|or|not)\b|\b(all|any)\(")


@dataclass(frozen=True)
class Reason:
    """Why code cannot be traced.

    Attributes
    ----------
    file, line, function, code
        Where: the innermost line of the user's code; an empty file where none is to blame.
    what, advice
        What that line does, and what to do about it.
    deeper
        The line of an installed package where it came up, if the user's code called one.
    """

    file: str
    line: int
    function: str
    code: str
    what: str
    advice: str
    deeper: str = ""

    def words(self) -> str:
        """Return it as one clause without local paths: ``"net.py:14 (`if x.sum() > 0:`) decides by ..."``."""
        place = f"{Path(self.file).name}:{self.line} (`{self.code}`)" if self.file else "it"
        return f"{place}{self._through()} {self.what}"

    def _through(self) -> str:
        return f", in {self.deeper}," if self.deeper else ""

    def message(self) -> str:
        """Return it as a person needs it to mend the code: the place as Python writes it, and what to do."""
        if not self.file:
            return f"it {self.what}. What to do: {self.advice}"
        frame = f'  File "{self.file}", line {self.line}, in {self.function}\n    {self.code}'
        return f"this line{self._through()} {self.what}:\n{frame}\nWhat to do: {self.advice}"


class UntraceableError(InputError):
    """torch.export cannot trace a model.

    Attributes
    ----------
    reason
        Where in the model's code, why, and what to do.
    """

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


def reason_of(error: BaseException) -> Reason:
    """Return in words why torch.export has failed.

    Parameters
    ----------
    error
        As it was caught right at the call of torch.export: its traceback begins there.
    """
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    text = "\n".join(f"{type(cause).__name__}: {cause}" for cause in causes)
    tracebacks = [traceback.extract_tb(cause.__traceback__) for cause in causes]
    frames: Sequence[traceback.FrameSummary] = next((each for each in tracebacks if _users(each) is not None), ())
    return _blamed(frames, lambda code: _kind(text, code) or (f"{FAILS}: {first_line(causes[-1])}", UNKNOWN))


def _blamed(frames: Sequence[traceback.FrameSummary], kind: Callable[[str], tuple[str, str]]) -> Reason:
    """Return a reason for the innermost of some frames that is the user's.

    Parameters
    ----------
    kind
        What is wrong and what to do, for the innermost line of code that is not torch's.
    """
    users = _users(frames)
    innermost = _outside_of_torch(frames)
    if users is None:
        return Reason("", 0, "", "", *kind(""))
    code, what = (users.line or "").strip(), kind((innermost[-1].line or "").strip())
    deeper = "" if innermost[-1] == users else f"{Path(innermost[-1].filename).name}:{innermost[-1].lineno}"
    if deeper:
        deeper += f" (`{(innermost[-1].line or '').strip()}`)"
    return Reason(users.filename, users.lineno or 0, users.name, code, *what, deeper)


def shape_reason(program: ExportedProgram) -> Reason | None:
    """Return where a traced graph has a tensor whose shape depends on the data, if it has one."""
    for node in program.graph.nodes:
        values = node.meta.get("val")
        for value in values if isinstance(values, (list, tuple)) else (values,):
            if isinstance(value, Tensor) and not all(type(size) is int for size in value.shape):
                return _written(node.meta.get("stack_trace") or "")
    return None


def _written(stack: str) -> Reason:
    """Return a reason of shapes for a node whose stack torch has written down, the innermost frame last."""
    found = re.findall(r'File "([^"]+)", line (\d+), in (\S+)\n\s+(.*)', stack)
    frames = [traceback.FrameSummary(file, int(line), name, line=code) for file, line, name, code in found]
    return _blamed(frames, lambda code: SHAPE)


def _kind(text: str, code: str) -> tuple[str, str] | None:
    """Return what is wrong, and what to do, from the text of the errors and the line where they came up."""
    if "Constraints violated" in text:
        return ONE_BATCH
    if "ScriptModule" in text or "ScriptFunction" in text:
        return SCRIPT
    if ".numpy()" in text or re.search(r"\bnp\.|numpy", code):
        return NUMPY
    if "DynamicOutputShape" in text or "nonzero" in text.lower():
        return SHAPE
    if re.search(r"data-dependent|DataDependent|unbacked", text, re.IGNORECASE):
        if _CONVERTED.search(code):
            return NUMBER
        return BRANCH if _DECISION.search(code) else SHAPE
    operator = re.search(r"\b(?:aten|prims|torchvision|[a-z]\w*)(?:::|\.)\w+(?:\.\w+)?", text)
    if re.search(r"UnsupportedOperator|UnsupportedFakeTensor|no fake impl|Meta.*backend|register_fake", text):
        return (f"{OPERATOR[0]} ({operator[0]})" if operator else OPERATOR[0]), OPERATOR[1]
    return None


def users_frame(error: BaseException) -> traceback.FrameSummary | None:
    """Return the innermost line of the user's code that an error went through, if it went through any."""
    return _users(traceback.extract_tb(error.__traceback__))


def as_python_writes_it(frame: traceback.FrameSummary) -> str:
    """Return a line of code with its place, as in a traceback."""
    return f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}\n    {frame.line}'


def _users(frames: Iterable[traceback.FrameSummary]) -> traceback.FrameSummary | None:
    """Return the innermost frame of the user's code; of an installed package where there is none of the user's."""
    theirs = _outside_of_torch(frames)
    own = [frame for frame in theirs if not _installed(frame.filename)] or theirs
    return own[-1] if own else None


def _outside_of_torch(frames: Iterable[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    machinery = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parents[1]}{os.sep}", "<")
    return [
        frame
        for frame in frames
        if not frame.filename.startswith(machinery)
        and (_installed(frame.filename) or not frame.filename.startswith(sysconfig.get_path("stdlib")))
    ]


def _installed(file: str) -> bool:
    return not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def first_line(error: BaseException) -> str:
    """Return an error in one line: its kind, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('. ')}" if lines else type(error).__name__


@contextmanager
def silence() -> Iterator[None]:
    """Keep warnings, log lines and what torch prints on stderr away from the terminal."""
    loggers = [logging.getLogger(name) for name in _CHATTY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


Mode = Callable[[nn.Module], AbstractContextManager[None]]
"""Puts a model into a mode, for a while."""


@contextmanager
def as_it_infers(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and every module back into its own mode afterwards."""
    with _in_mode(model, training=False):
        yield


@contextmanager
def as_it_trains(model: nn.Module) -> Iterator[None]:
    """Put a model into training mode, and every module back into its own mode afterwards."""
    with _in_mode(model, training=True):
        yield


@contextmanager
def _in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.train(training)
        yield
    finally:
        for module, training in modes:
            module.training = training


def exported(
    model: nn.Module,
    example: tuple[Tensor, ...],
    dynamic_shapes: tuple[Any, ...] | None = None,
    mode: Mode = as_it_infers,
) -> ExportedProgram:
    """Trace a model: as its code runs, and where that fails as its bytecode reads.

    The first way takes less time; the second understands numpy and numbers that are read off tensors. Nothing is
    written to the terminal.

    Parameters
    ----------
    dynamic_shapes
        As for torch.export.export.
    mode
        `as_it_infers` or `as_it_trains`.

    Raises
    ------
    UntraceableError
        If both fail.
    """
    # Without gradients a model's own no_grad blocks change nothing, and are not wrapped into graphs of their own.
    with torch.no_grad(), silence(), mode(model):
        try:
            return torch.export.export(model, example, dynamic_shapes=dynamic_shapes, strict=False)
        except Exception as error:  # torch raises what it likes here: RuntimeError, TypeError, sympy's own
            first = error
        try:
            return torch.export.export(model, example, dynamic_shapes=dynamic_shapes, strict=True)
        except Exception:  # as above
            reason = reason_of(first)
    name = type(model).__name__
    raise UntraceableError(f"torch.export cannot trace {name}: {reason.message()}", reason) from first
