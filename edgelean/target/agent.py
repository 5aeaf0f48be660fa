"""The agent: the program of devices/agent that measures on a board, as this machine sees it."""

from __future__ import annotations

import getpass
import io
import json
import logging
import socket
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from edgelean.errors import DeviceError
from edgelean.shelf import shelf
from edgelean.target.candidate import Feeds
from edgelean.target.remote import Line, ProgramError

Say = Callable[[str], None]

BUSY_S, BUSY_LOOK_S, BUSY_WORDS_S = 900.0, 2.0, 30.0
"""How long to wait for a board that is busy, how often to look, and how often to say so."""

_log = logging.getLogger(__name__)


class AgentError(DeviceError):
    """The agent could not do what was asked; ``kind`` is one of its kinds."""

    def __init__(self, message: str, kind: str, detail: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True)
class Agent:
    """The agent on a board.

    Attributes
    ----------
    line
        How programs are run there.
    command
        What runs the agent.
    tell
        Gets words about what happens now.
    sleep
        How to wait for a busy board.
    """

    line: Line
    command: Sequence[str]
    tell: Say = _log.info
    sleep: Callable[[float], object] = time.sleep

    def ask(self, command: str, content: bytes = b"", **request: Any) -> dict[str, Any]:
        """Return what the agent answers; a board that measures for somebody else is waited for.

        Raises
        ------
        AgentError
            It refused; the message says why, and what to do.
        DeviceError
            The board cannot be reached, or is busy for too long.
        """
        line = json.dumps({"command": command, "who": _me(), **request})
        waited_s = 0.0
        while True:
            answer = self._answer(line.encode() + b"\n" + content)
            if answer["event"] == "result":
                return answer
            if answer["kind"] != "busy":
                raise AgentError(f"{self.line.words}: {answer['message']}: {answer['remedy']}", **_kind(answer))
            if waited_s >= BUSY_S:
                raise DeviceError(
                    f"{self.line.words}: the board is still {answer['message']} after {BUSY_S / 60:g} minutes: wait "
                    "until it is free, then resume the run"
                )
            if waited_s % BUSY_WORDS_S == 0:
                _log.warning("%s: the board is %s: waiting", self.line.words, answer["message"])
            self.sleep(BUSY_LOOK_S)
            waited_s += BUSY_LOOK_S

    def _answer(self, content: bytes) -> dict[str, Any]:
        """Return the last event of one conversation; the words of the others are passed on."""
        last: dict[str, Any] = {}

        def hear(line: str) -> None:
            event = _event(line)
            if event.get("event") == "progress":
                self.tell(f"{self.line.words}: {event.get('message', '')}")
            elif event:
                last.clear()
                last.update(event)

        self.line.run(self.command, content, hear)
        if last.get("event") == "error" and all(isinstance(last.get(k), str) for k in ("kind", "message", "remedy")):
            return last
        if last.get("event") != "result":
            raise DeviceError(f"{self.line.words}: the agent ended without an answer: connect again")
        return last


def _me() -> str:
    """Return who measures, for others that find the board busy; a container may have no user."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):
        return f"somebody@{socket.gethostname()}"


def _kind(answer: Mapping[str, Any]) -> dict[str, str]:
    return {"kind": answer["kind"], "detail": answer["message"]}


def _event(line: str) -> dict[str, Any]:
    """Return the event that a line is, without what could steer a terminal; a greeting of the login shell is none."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    if not isinstance(event, dict):
        return {}
    return {key: _printable(value) if isinstance(value, str) else value for key, value in event.items()}


def _printable(words: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in words)


def agent_folder() -> Path:
    """Return the folder with the parts of the agent."""
    return shelf("devices") / "agent"


def pack_agent() -> bytes:
    """Return the agent as one file that Python runs: a zip archive of its parts, the same bytes every time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for part in sorted(agent_folder().glob("*.py")):
            name = "__main__.py" if part.name == "agent.py" else part.name
            archive.writestr(zipfile.ZipInfo(name), part.read_bytes(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def install_agent(line: Line) -> tuple[str, ...]:
    """Copy the agent to a board and return the command that runs it there.

    It goes to ~/.cache/edgelean, or to a folder of this user alone in /tmp where the home cannot be written. Python is
    the one of ~/.local/share/edgelean where there is one, which is how a board gets packages of its own, else python3.

    Raises
    ------
    DeviceError
        There is no connection, no Python 3.8 or newer, no folder, or no space.
    """
    packed = pack_agent()
    name = f"agent-{sha256(packed).hexdigest()}.pyz"
    heard: list[str] = []
    try:
        line.run(("sh", "-c", _INSTALL, "sh", name, str(len(packed))), packed, heard.append)
    except ProgramError as error:
        remedy = _INSTALL_REMEDIES.get(error.code)
        if remedy is None:
            raise
        raise DeviceError(f"{error}: {remedy}") from None
    found = [words.removeprefix(_MARK).split("\t") for words in heard if words.startswith(_MARK)]
    if len(found) != 1 or len(found[0]) != 2:
        raise DeviceError(f"{line.words}: its shell did not run `sh -c`: it said {' '.join(heard)[:200]!r}")
    return tuple(found[0])


def one_file(path: Path) -> bytes:
    """Return an ONNX file with all its weights in it, also where they lie in files beside it."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    model = onnx.load(path, load_external_data=False)
    if any(uses_external_data(tensor) for tensor in model.graph.initializer):
        return bytes(onnx.load(path).SerializeToString())
    return path.read_bytes()


def packed(feeds: Feeds) -> bytes:
    """Return one batch of inputs as an .npz archive: the same bytes for the same inputs."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in feeds.items():
            # An entry without a date; numpy.savez has arguments of its own, which an input may be called like.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()


_MARK = "edgelean agent: "
_INSTALL = f"""
umask 077
python=$HOME/.local/share/edgelean/bin/python3
[ -x "$python" ] || python=$(command -v python3) || {{ echo "there is no python3" >&2; exit 71; }}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 8))' ||
    {{ echo "$("$python" --version) is too old" >&2; exit 72; }}
for folder in "${{XDG_CACHE_HOME:-$HOME/.cache}}/edgelean" "${{TMPDIR:-/tmp}}/edgelean-$(id -u)"; do
    mkdir -p "$folder" 2>/dev/null
    [ -d "$folder" ] && [ -O "$folder" ] && [ ! -L "$folder" ] && [ -w "$folder" ] || continue
    head -c "$2" > "$folder/tmp$$.part" && [ "$(wc -c < "$folder/tmp$$.part")" -eq "$2" ] &&
        mv "$folder/tmp$$.part" "$folder/$1" || {{ rm -f "$folder/tmp$$.part"; exit 73; }}
    printf '{_MARK}%s\\t%s\\n' "$python" "$folder/$1"
    exit 0
done
echo "neither ~/.cache nor /tmp can be written" >&2
exit 74
"""
_INSTALL_REMEDIES = {
    71: "the agent needs Python 3.8 or newer on the board",
    72: "the agent needs Python 3.8 or newer; ~/.local/share/edgelean/bin/python3 is taken where it exists",
    73: "the agent was not copied: free some space on the board",
    74: "the agent needs one folder of its own",
}
