"""A recipe: a model, its data, loss, metric and hyper-parameters, and how to find one."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from edgelean.errors import EdgeleanError, InputError, MissingError

Source = Dataset[Any] | DataLoader[Any]
Metric = Callable[[Tensor, Tensor], float]
T = TypeVar("T")

BUILT_IN = {
    "digits": "edgelean.recipes.digits:recipe",
    "digits-sequence": "edgelean.recipes.digits_sequence:recipe",
    "spoken-digits": "edgelean.recipes.spoken_digits:recipe",
    "smnist": "edgelean.recipes.smnist:recipe",
    "scifar": "edgelean.recipes.scifar:recipe",
}


@dataclass(frozen=True)
class Data:
    """Where the samples come from: three data sets, or three loaders, that yield ``(input, target)``."""

    train: Source
    validation: Source
    test: Source


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """How an image becomes a sample, for the runners that ship with a model: resized, from 0 to 1, then normalised.

    Attributes
    ----------
    size
        Height and width in pixels; another size is changed linearly, with a mean where it shrinks.
    channels
        1 for grey, 3 for red, green and blue.
    mean, std
        Per channel: what is taken off the pixels, which are from 0 to 1, and what they are then divided by.
    layout
        The order of the numbers; the shape is that of the model's input.
    """

    size: tuple[int, int]
    channels: Literal[1, 3] = 3
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: Literal["channels first", "channels last"] = "channels first"

    def to_json(self) -> dict[str, Any]:
        """Return it in plain JSON types, as a manifest has it."""
        return {"kind": "image", **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class AudioInput:
    """How a recording becomes a sample, for the runners that ship with a model: one channel, from -1 to 1.

    Attributes
    ----------
    rate_hz
        Samples a second; a recording of another rate is refused.
    samples
        Length; a longer one is cut at its end, a shorter one gets silence on both sides.
    rms
        The root mean square that every recording is brought to before the silence is added; 0 leaves it as it is.
    frame, hop
        Samples in a frame, and from one to the next; 0 for the whole recording in one.
    """

    rate_hz: int
    samples: int
    rms: float = 0.0
    frame: int = 0
    hop: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return it in plain JSON types, as a manifest has it."""
        return {"kind": "audio", **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained, on what, and how.

    Attributes
    ----------
    model
        Makes the full-size model; called once for every training.
    data
        Gives ``(train, validation, test)``: data sets or loaders whose items are ``(input, target)``.
    loss
        ``loss(output, target)``, a scalar tensor: the mean over the batch, in nats where that makes sense.
    metric
        ``"accuracy"``, ``"r2"``, or a function of all outputs and all targets of a split; higher is better.
    name
        What the run is called; the file's name where it is left empty.
    epochs, batch_size, learning_rate, weight_decay
        Hyper-parameters; the learning rate warms up over 5 % of the steps and falls to zero along a cosine.
    optimizer
        Makes another optimizer than AdamW from the parameters.
    compare
        Whether the full-size model is trained as well, so that the report compares like with like. Costs one
        more training.
    labels
        Names of the classes, for the runner that ships with the model.
    protect
        Paths of modules that keep their size, such as ``"head"`` or ``"layers.*.attn"``, with all that is below them.
    preparation
        How an image or a recording becomes a sample, for the runner that ships with the model.
    evidence
        At most so many samples of the test split go into the bundle, with what the trained model says of them, so that
        it can be verified elsewhere; 0 where the data must not leave.
    """

    model: Callable[[], nn.Module]
    data: Callable[[], Data | tuple[Source, Source, Source]]
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: str | Metric = "accuracy"
    name: str = ""
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None
    compare: bool = False
    labels: tuple[str, ...] = ()
    protect: Sequence[str] = ()
    preparation: ImageInput | AudioInput | None = None
    evidence: int = 256

    def metric_name(self) -> str:
        """Return what the metric is called in displays and reports."""
        return self.metric if isinstance(self.metric, str) else getattr(self.metric, "__name__", "metric")

    def metric_function(self) -> Metric:
        """Return the metric as a function of all outputs and all targets of a split.

        Raises
        ------
        InputError
            If the metric's name is not known.
        """
        if not isinstance(self.metric, str):
            return self.metric
        if self.metric not in METRICS:
            raise InputError(f"metric {self.metric!r} is not known: use one of {', '.join(METRICS)}, or a function")
        return METRICS[self.metric]

    def with_settings(self, settings: Mapping[str, str]) -> Recipe:
        """Return the recipe with hyper-parameters replaced, as ``--set key=value`` asks.

        Raises
        ------
        InputError
            If a key is not a hyper-parameter, or its value does not have the right type.
        """
        return replace(self, **{key: _converted(key, text) for key, text in settings.items()})


def accuracy(output: Tensor, target: Tensor) -> float:
    """Return the share of samples whose largest output ``[n, classes]`` is at the target ``[n]``."""
    return float((output.argmax(1) == target).double().mean())


def r2(output: Tensor, target: Tensor) -> float:
    """Return the coefficient of determination of the outputs against the targets, of one shape."""
    target = target.reshape(output.shape).double()
    residual = (output.double() - target).square().sum()
    return float(1 - residual / (target - target.mean(0)).square().sum())


METRICS: dict[str, Metric] = {"accuracy": accuracy, "r2": r2}

_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _flag(text: str) -> bool:
    return _WORDS[text.lower()]


def _paths(text: str) -> tuple[str, ...]:
    return tuple(path.strip() for path in text.split(",") if path.strip())


_CONVERTERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "epochs": (int, "a whole number"),
    "batch_size": (int, "a whole number"),
    "learning_rate": (float, "a number"),
    "weight_decay": (float, "a number"),
    "compare": (_flag, "true or false"),
    "evidence": (int, "a whole number"),
    "protect": (_paths, "paths of modules, with commas between them"),
}


def _converted(key: str, text: str) -> Any:
    if key not in _CONVERTERS:
        raise InputError(
            f"--set {key}={text}: {key!r} cannot be set; allowed are {', '.join(_CONVERTERS)}, "
            "and what `edgelean profiles show` has under control"
        )
    convert, wanted = _CONVERTERS[key]
    try:
        return convert(text)
    except (ValueError, KeyError):
        raise InputError(f"--set {key}={text}: {key} has to be {wanted}") from None


def checked(recipe: Recipe) -> Recipe:
    """Return the recipe if its hyper-parameters make sense.

    Raises
    ------
    InputError
        If one of them is out of its range.
    """
    for key in ("epochs", "batch_size", "learning_rate"):
        if not getattr(recipe, key) > 0:
            raise InputError(f"recipe {recipe.name!r}: {key} is {getattr(recipe, key)}, it has to be above 0")
    for key in ("weight_decay", "evidence"):
        if getattr(recipe, key) < 0:
            raise InputError(f"recipe {recipe.name!r}: {key} is {getattr(recipe, key)}, it cannot be negative")
    if isinstance(recipe.protect, str) or not all(isinstance(path, str) and path for path in recipe.protect):
        raise InputError(f"recipe {recipe.name!r}: protect is {recipe.protect!r}, it has to be a list of module paths")
    recipe.metric_function()
    return recipe


def load_recipe(spec: str) -> Recipe:
    """Find a recipe by a built-in name, a Python file, or an importable ``module:attribute``.

    Raises
    ------
    MissingError
        If there is no such built-in, file or attribute; names what comes near.
    InputError
        If the file cannot be imported (the user's frames of the traceback are shown) or holds no recipe.
    """
    if spec in BUILT_IN:
        return _from_module(BUILT_IN[spec], spec)
    if spec.endswith(".py") or "/" in spec:
        return _from_file(Path(spec))
    if ":" in spec:
        return _from_module(spec, spec)
    near = difflib.get_close_matches(spec, BUILT_IN, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise MissingError(
        f"recipe {spec!r} was not found: {hint}Built in are {', '.join(BUILT_IN)}; "
        "a file ends in .py, an importable recipe is written package.module:name"
    )


def _from_file(path: Path) -> Recipe:
    if not path.is_file():
        raise MissingError(f"recipe file {path} does not exist")
    name = f"edgelean_recipe_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise InputError(f"recipe file {path} is not a Python file")
    module, loader = importlib.util.module_from_spec(module_spec), module_spec.loader
    sys.modules[name] = module  # data loaders that start processes have to find the classes again
    call_users(lambda: loader.exec_module(module), f"recipe file {path} cannot be imported")
    return _picked(module, "recipe", str(path))


def _from_module(place: str, spec: str) -> Recipe:
    module_name, _, attribute = place.partition(":")
    module = call_users(lambda: importlib.import_module(module_name), f"recipe {spec!r} cannot be imported")
    return _picked(module, attribute, spec)


def _picked(module: object, attribute: str, spec: str) -> Recipe:
    found = getattr(module, attribute, None)
    if found is None:
        raise InputError(
            f"{spec} has no {attribute!r}: end the file with `{attribute} = edgelean.Recipe(model=..., data=...)`"
        )
    if not isinstance(found, Recipe):
        raise InputError(f"{spec}: {attribute!r} is a {type(found).__name__}, it has to be an edgelean.Recipe")
    missing = [f.name for f in fields(Recipe)[:3] if not callable(getattr(found, f.name))]
    if missing:
        raise InputError(f"{spec}: {' and '.join(missing)} of the recipe has to be a function")
    name = found.name or Path(spec.split(":")[0]).stem
    return checked(replace(found, name=name))


def call_users(function: Callable[[], T], what: str) -> T:
    """Call code that the user wrote; a failure becomes one message with the user's own frames.

    Raises
    ------
    InputError
        ``what``, the error, and the part of the traceback that lies in the user's files.
    """
    try:
        return function()
    except EdgeleanError:
        raise
    except Exception as error:
        raise InputError(f"{what}: {type(error).__name__}: {error}\n{_users_frames(error)}".rstrip()) from None


def _users_frames(error: Exception) -> str:
    """Return the traceback without the frames of edgelean, of installed packages and of Python itself."""
    own = str(Path(__file__).parent)
    theirs = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((own, sys.prefix, sys.base_prefix, "<"))
    ]
    if isinstance(error, SyntaxError):
        return "".join(traceback.format_exception_only(error)).rstrip()
    return "".join(traceback.format_list(theirs)).rstrip()
