"""Reading a shelf's TOML files into frozen models, with one clear message for whatever is wrong in them."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgelean.errors import InputError, MissingError

Model = TypeVar("Model", bound=BaseModel)


class Frozen(BaseModel):
    """Base of every value that is read from a file: it cannot be changed, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def knob(default: Any, unit: str, sentence: str, **limits: Any) -> Any:
    """Return a field that explains itself: its default, its unit, one sentence, and the values it allows."""
    return Field(default, description=sentence, json_schema_extra={"unit": unit}, **limits)


class Knob(NamedTuple):
    """One thing that a document can set: its dotted key, its value, and what its field says about it."""

    key: str
    value: Any
    unit: str
    sentence: str


def knobs_of(document: Frozen, prefix: str = "") -> Iterator[Knob]:
    """Yield every knob of a document and of its sections, in the order of the fields."""
    for name, field in type(document).model_fields.items():
        value = getattr(document, name)
        if isinstance(field.json_schema_extra, dict):
            yield Knob(prefix + name, value, str(field.json_schema_extra["unit"]), field.description or "")
        elif isinstance(value, Frozen):
            yield from knobs_of(value, f"{prefix}{name}.")


def document_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the TOML files of ``folder``, sorted, without the ending."""
    return tuple(sorted(path.stem for path in folder.glob("*.toml")))


def is_path(name_or_path: str | Path) -> bool:
    """Tell a file (a ``Path``, or a text with a separator or the ending .toml) from a name on a shelf."""
    text = str(name_or_path)
    return isinstance(name_or_path, Path) or text.endswith(".toml") or "/" in text or "\\" in text


def find_document(what: str, folder: Path, name_or_path: str | Path) -> Path:
    """Return the file that ``name_or_path`` means: a path as it is, a name as a file of ``folder``.

    Parameters
    ----------
    what
        The word for such a document in a message: "board", "profile".
    folder
        The shelf that holds the named documents.
    name_or_path
        A name such as ``jetson-orin``, or a path to a TOML file.

    Raises
    ------
    MissingError
        There is no such file, or no such name; the message lists the nearest names.
    """
    if is_path(name_or_path):
        path = Path(name_or_path)
        if not path.is_file():
            raise MissingError(f"{path}: this {what} file does not exist")
        return path
    names = document_names(folder)
    if name_or_path not in names:
        raise MissingError(f"there is no {what} named {str(name_or_path)!r}: {nearest(str(name_or_path), names)}")
    return folder / f"{name_or_path}.toml"


def nearest(name: str, names: tuple[str, ...]) -> str:
    """Return a hint for a mistyped name: the nearest of ``names``, or all of them if none is near."""
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(names) or 'none'}"


def read_document(model: type[Model], path: Path, extra: Mapping[str, Any]) -> Model:
    """Read the TOML file ``path`` into ``model``, adding the keys of ``extra``, which the file must not have.

    Raises
    ------
    InputError
        The file is not TOML (with the line), or a key is unknown, missing or not allowed (``FILE: key: why``).
    """
    written = _toml(path)
    for key in extra:
        if key in written:
            raise InputError(f"{path}: {key}: must not be written here, it is the name of the file")
    try:
        return model.model_validate({**written, **extra})
    except ValidationError as error:
        raise InputError("\n".join(f"{path}: {line}" for line in complaints(model, error))) from None


def _toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a text file: {error}") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason = str(error).replace("at end of document", f"at line {text.count(chr(10)) + 1}, the end of the file")
        raise InputError(f"{path}: is not valid TOML: {reason}") from None


def complaints(model: type[BaseModel], error: ValidationError) -> list[str]:
    """Return what is wrong with what was given to a model, a line each: the key, and what is allowed."""
    lines = []
    for one in error.errors():
        key = ".".join(str(part) for part in one["loc"])
        if one["type"] == "extra_forbidden":
            reason = f"is not a known key; {nearest(str(one['loc'][-1]), _keys(model, one['loc'][:-1]))}"
        elif one["type"] == "missing":
            reason = "is missing"
        elif one["type"] == "value_error":
            reason = str(one["ctx"]["error"])
        else:
            reason = f"{one['msg'].replace('Input should', 'should')}, found {one['input']!r}"
        lines.append(f"{key}: {reason}" if key else reason)
    return lines


def _keys(model: type[BaseModel], place: tuple[int | str, ...]) -> tuple[str, ...]:
    for part in place:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = (field.annotation, *get_args(field.annotation)) if field else ()
        found = [kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not found:
            return ()
        model = found[0]
    return tuple(model.model_fields)
