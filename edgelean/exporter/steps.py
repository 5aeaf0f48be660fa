"""The step form of a model: found, held against the model, and exported for streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from edgelean.errors import InputError
from edgelean.exporter.onnx import OPSET, export_onnx
from edgelean.exporter.recorded import Names

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgelean.nn import StepForm

Form = Literal["sequence", "step"]
"""How a file reads a sequence: as a whole, of one length, or time step by time step, of any length."""

Answers = Literal["last", "every"]
"""What the model says of a sequence: the answer after its last step, or one answer for every step."""

STEP_NAMES = Names(("input", "state"), ("output", "new_state"))

FORM_KEY = "edgelean.form"
LENGTH_KEY = "edgelean.sequence_length"
STATE_KEY = "edgelean.state_size"
ANSWERS_KEY = "edgelean.answers"
STEP_FORM_KEY = "edgelean.step_form"

COMPARED_STEPS = 64
"""Time steps on which the step form is held against the model before it is exported."""

FAITHFUL = 1e-3
"""How far it may be off there, relative to the largest output; the exported file is held to its own tolerance."""


@dataclass(frozen=True)
class Steps:
    """The step form of a model.

    Attributes
    ----------
    form
        ``forward(inputs, state)`` returns the outputs and the new state.
    example
        One time step of a batch, and the state at the start.
    length
        Time steps of the sequences that the model was trained on.
    answers
        Which outputs make up the answer of the whole sequence.
    """

    form: StepForm
    example: tuple[Tensor, Tensor]
    length: int
    answers: Answers

    @property
    def size(self) -> int:
        """Numbers that the model remembers of a sample."""
        return self.form.size

    def feeds(self) -> dict[str, NDArray[Any]]:
        """Return the example by the names of the exported file."""
        return {name: x.cpu().numpy() for name, x in zip(STEP_NAMES.inputs, self.example, strict=True)}

    def metadata(self, form: Form) -> dict[str, str]:
        """Return what is told in the file of one of the two forms."""
        told = {FORM_KEY: form, LENGTH_KEY: str(self.length), ANSWERS_KEY: self.answers}
        return told | ({STATE_KEY: str(self.size)} if form == "step" else {STEP_FORM_KEY: step_name("model.onnx")})


def step_name(file: str) -> str:
    """Return what the step form's file is called beside the one of the whole sequence, such as ``model.step.onnx``."""
    name, _, ending = file.partition(".")
    return f"{name}.step.{ending}"


def find_steps(model: nn.Module, batch: tuple[Tensor, ...], probe: tuple[Tensor, ...]) -> Steps | None:
    """Return the step form of a model; None if it has no ``step``.

    Parameters
    ----------
    model
        ``step(inputs, state)`` takes one time step ``[batch, ...]`` of its only input ``[batch, time, ...]`` and what
        the previous step returned, None at the start; it returns the outputs and what the next step needs, tensors
        with the batch in front, zeros where a sequence starts.
    batch
        Inputs of the model, from which one time step is taken as the example.
    probe
        Inputs on which both forms are run and compared.

    Raises
    ------
    InputError
        It has a ``step``, and it cannot be used: why.
    """
    import torch

    from edgelean.nn import StepForm
    from edgelean.shrink.untraceable import as_it_infers, first_line

    if not callable(getattr(model, "step", None)):
        return None
    if len(batch) != 1 or batch[0].ndim < 2:
        raise InputError("a step form reads one input, with the time as its second dimension")
    with as_it_infers(model), torch.no_grad():
        try:
            form = StepForm(model, batch[0][:, 0])
            answers = _compared(form, probe[0][:, :COMPARED_STEPS])
        except InputError:
            raise
        except Exception as error:  # whatever a step of the user's raises
            raise InputError(f"its step does not run: {first_line(error)}") from error
        example = batch[0][:, 0], form.start(batch[0][:, 0])
    return Steps(form, example, batch[0].shape[1], answers)


def _compared(form: StepForm, inputs: Tensor) -> Answers:
    """Run both forms; return which outputs of the step form are the model's answer.

    Raises
    ------
    InputError
        None of them are.
    """
    import torch

    wanted, state, found = form.model(inputs), form.start(inputs[:, 0]), []
    for step in inputs.unbind(1):
        output, state = form(step, state)
        found.append(output)
    answer, answers = (found[-1], "last") if wanted.shape == found[-1].shape else (torch.stack(found, 1), "every")
    if answer.shape != wanted.shape:
        shapes = f"{list(found[-1].shape)} after each of {inputs.shape[1]} steps, the model {list(wanted.shape)}"
        raise InputError(f"its step gives {shapes}")
    off = float((answer - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30))
    if not off <= FAITHFUL:
        raise InputError(
            f"over {inputs.shape[1]} time steps its step gives other outputs than the model, off by {off:.1g}"
        )
    return "last" if answers == "last" else "every"


def export_steps(steps: Steps, path: Path | str, *, metadata: Mapping[str, str], opset: int = OPSET) -> Path:
    """Write the step form to one ONNX file in FP32: ``input`` and ``state`` in, ``output`` and ``new_state`` out.

    See `export_onnx` for what is promised and raised.
    """
    told = {**metadata, **steps.metadata("step")}
    return export_onnx(steps.form, steps.example, path, metadata=told, opset=opset, names=STEP_NAMES)
