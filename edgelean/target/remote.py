"""A program on a board, through the system's own OpenSSH: so ~/.ssh/config, jump hosts and agents hold.

What is asked goes out on the program's input, which stays open until the answer has come: a program that sees its input
end knows that nobody waits for it any more.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread, Timer
from typing import IO, Protocol

from edgelean.errors import DeviceError, InputError

LOST = 255
"""What ssh returns where the connection failed, and no program returns that is run here."""
PAUSES_S = (0.5, 2.0, 5.0)
"""Before each further attempt to connect; a line that was given up once is tried once from then on."""
CONNECT_S, ALIVE_S, ALIVE_TIMES, PERSIST_S = 10, 5, 3, 300
SILENCE_S = 1800.0
"""An engine of a large model takes so long to build; a program that is silent for longer hangs."""
LONGEST_SOCKET = 80
"""Of some 104 bytes that a Unix socket's path may have, ssh needs 17 for itself."""

_ADDRESS = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z0-9_.][A-Za-z0-9_.+$-]*)@)?"
    r"(?P<host>[A-Za-z0-9_.][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.%A-Za-z0-9]+\])(?::(?P<port>\d{1,5}))?/?"
)
_FINAL: Sequence[tuple[str, str]] = (
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "another machine answers there, or this one was installed anew: if that is so, forget its old key with "
        "`ssh-keygen -R {host}` and connect once by hand",
    ),
    (r"Host key verification failed", "its host key is not known: connect once by hand with `ssh {host}`"),
    (
        r"Permission denied|Too many authentication failures",
        "no key of this user is let in, and passwords are not asked for: `ssh-copy-id {host}` installs one, `ssh-add` "
        "unlocks one",
    ),
    (r"Could not resolve hostname", "check the name, or give it a Host entry in ~/.ssh/config"),
    (r"[Bb]ad configuration option|Bad owner or permissions|[Uu]nsupported option", "correct the ssh configuration"),
)
"""What ssh says where another attempt would fail in the same way, and what to do."""
_SOCKET_TROUBLE = re.compile(r"unix_listener|ControlSocket|ControlPath|session request failed|Session open refused")
"""What it says where one connection cannot be shared: a path that is too long, a server that allows one session."""


@dataclass(frozen=True)
class Address:
    """Where a board is: ``ssh://[user@]host[:port]``; the host may be a name from ~/.ssh/config."""

    words: str
    host: str
    user: str | None = None
    port: int | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        """What ssh is called with, the host last."""
        port = () if self.port is None else ("-p", str(self.port))
        user = () if self.user is None else ("-l", self.user)
        return (*port, *user, "--", self.host)


def parse_address(spec: str) -> Address:
    """Return the address that a text such as ``ssh://nano@192.168.1.7:2222`` means.

    Raises
    ------
    InputError
        It is not such a text. A host or a user that begins with a dash, which ssh would take for an option, is not.
    """
    match = _ADDRESS.fullmatch(spec)
    port = int(match["port"]) if match and match["port"] else None
    if match is None or (port is not None and not 0 < port < 65536):
        raise InputError(
            f"{spec!r} is no address of a board: wanted ssh://[user@]host[:port], with a host as ssh knows it"
        )
    return Address(spec.rstrip("/"), match["host"].strip("[]"), match["user"], port)


class ProgramError(DeviceError):
    """A program on the other side ended with an error; ``code`` is what it returned, ``said`` its last words."""

    def __init__(self, message: str, code: int, said: str) -> None:
        super().__init__(message)
        self.code = code
        self.said = said


class Line(Protocol):
    """Runs programs somewhere."""

    @property
    def words(self) -> str:
        """Where, for messages."""
        ...

    def run(self, program: Sequence[str], content: bytes, hear: Callable[[str], None]) -> None:
        """Run a program with a content on its input, which stays open; ``hear`` gets every line that it prints.

        Raises
        ------
        ProgramError
            The program failed.
        DeviceError
            It cannot be reached.
        """
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


@dataclass(frozen=True)
class Here:
    """Programs on this machine."""

    words: str = "this machine"

    def run(self, program: Sequence[str], content: bytes, hear: Callable[[str], None]) -> None:
        """Run a program; see :class:`Line`."""
        code, said = _converse(program, content, hear)
        if code != 0:
            raise ProgramError(f"{self.words}: {said or f'{program[0]} returned {code}'}", code, said)

    def close(self) -> None:
        """Nothing is held."""


@dataclass
class Ssh:
    """Programs on another machine; one connection serves them all, where ssh can share one.

    Attributes
    ----------
    address
        The other machine.
    tell
        Gets a line of words when a connection is lost and tried again.
    sleep
        How to wait.
    """

    address: Address
    tell: Callable[[str], None]
    sleep: Callable[[float], object] = time.sleep
    _pauses_s: tuple[float, ...] = PAUSES_S
    _folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="el-")), repr=False)
    _shares: bool = field(default=True, repr=False)

    @property
    def words(self) -> str:
        """The address as it was given."""
        return self.address.words

    def run(self, program: Sequence[str], content: bytes, hear: Callable[[str], None]) -> None:
        """Run a program; a lost connection is tried again, from the beginning. See :class:`Line`."""
        for pause_s in (*self._pauses_s, None):
            code, said = self._once(program, content, hear)
            if code == LOST and self._shares and _SOCKET_TROUBLE.search(said):
                self._shares = False
                code, said = self._once(program, content, hear)
            if code == 0:
                return
            if code != LOST:
                raise ProgramError(f"{self.words}: {_last_line(said) or f'exit code {code}'}", code, said)
            self._refuse_final(said)
            if pause_s is not None:
                self.tell(f"{self.words}: {_last_line(said)}: trying again in {pause_s:g} s")
                self.sleep(pause_s)
        attempts, self._pauses_s = len(self._pauses_s) + 1, ()
        raise DeviceError(
            f"{self.words}: no connection in {attempts} attempts: ssh says {_last_line(said)!r}: is the board on, and "
            "in this network? A run can be resumed"
        )

    def close(self) -> None:
        """End the shared connection and remove its folder."""
        if self._shares and self._folder.exists():
            command = ("ssh", *self._sharing(), "-O", "exit", *self.address.arguments)
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=CONNECT_S, check=False)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _once(self, program: Sequence[str], content: bytes, hear: Callable[[str], None]) -> tuple[int, str]:
        options = (
            *("-T", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}"),
            *("-o", f"ServerAliveInterval={ALIVE_S}", "-o", f"ServerAliveCountMax={ALIVE_TIMES}"),
            *self._sharing(),
        )
        return _converse(("ssh", *options, *self.address.arguments, shlex.join(program)), content, hear)

    def _sharing(self) -> tuple[str, ...]:
        """Return the options by which later calls use the connection of the first."""
        socket = self._folder / "c"
        if not self._shares or len(str(socket)) > LONGEST_SOCKET:
            return ()
        return ("-o", "ControlMaster=auto", "-o", f"ControlPath={socket}", "-o", f"ControlPersist={PERSIST_S}")

    def _refuse_final(self, said: str) -> None:
        for pattern, remedy in _FINAL:
            if found := re.search(f"^.*(?:{pattern}).*$", said, re.MULTILINE):
                words = found[0].strip("@ \r\t")
                raise DeviceError(f"{self.words}: ssh says {words!r}: {remedy.format(host=self.address.host)}")


def _converse(command: Sequence[str], content: bytes, hear: Callable[[str], None]) -> tuple[int, str]:
    """Run a command on this machine; return its exit code and what it said on the error output."""
    # A file and not a pipe: ssh's shared connection lives on in the background and would keep a pipe open.
    with tempfile.TemporaryFile() as errors, _started(command, errors) as process:
        Thread(target=_feed, args=(process.stdin, content), daemon=True).start()
        for line in _lines(process):
            hear(line)
        code = process.wait()
        errors.seek(0)
        return code, errors.read().decode(errors="replace").strip()


@contextlib.contextmanager
def _started(command: Sequence[str], errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command; it is gone afterwards, however one leaves."""
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    except FileNotFoundError:
        raise DeviceError(f"{command[0]} is not installed here: install the OpenSSH client") from None
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what was not written yet has no reader any more
                if stream is not None:
                    stream.close()


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Yield what a program prints, until it ends.

    Raises
    ------
    DeviceError
        It printed nothing for too long, and was ended.
    """
    silent = Event()

    def give_up() -> None:
        silent.set()
        process.kill()

    timer = Timer(SILENCE_S, give_up)
    timer.start()
    try:
        for line in process.stdout or ():
            timer.cancel()
            timer = Timer(SILENCE_S, give_up)
            timer.start()
            yield line.decode(errors="replace").rstrip("\r\n")
    finally:
        timer.cancel()
    if silent.is_set():
        raise DeviceError(f"nothing was heard for {SILENCE_S / 60:g} minutes: is the board still alive?")


def _feed(stream: IO[bytes] | None, content: bytes) -> None:
    """Write, and leave the input open."""
    with contextlib.suppress(OSError, ValueError):  # the program ended, its exit code says why
        if stream is not None:
            stream.write(content)
            stream.flush()


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1] if lines else ""
