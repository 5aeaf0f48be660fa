"""A real sshd on the loopback interface, with keys and a configuration of its own, for this user alone.

What is tested calls plain `ssh`: a wrapper that is put first in PATH adds a configuration file.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
WHY_NOT = "the OpenSSH server and client have to be installed"


def installed() -> bool:
    return SSHD is not None and shutil.which("ssh") is not None and shutil.which("ssh-keygen") is not None


@dataclass
class Sshd:
    """A running server, and the folder with everything that belongs to it."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    @property
    def client_config(self) -> Path:
        return self.folder / "ssh_config"

    def known_as(self, name: str, *options: str) -> str:
        """Give the client a name for this server, with options instead of the usual; returns the address."""
        basics = {
            "HostName": "127.0.0.1",
            "Port": str(self.port),
            "User": getpass.getuser(),
            "UserKnownHostsFile": str(self.folder / "known_hosts"),
            "IdentityFile": str(self.folder / "user_key"),
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
        }
        basics.update(option.split(" ", 1) for option in options)
        with self.client_config.open("a") as config:
            config.write(f"Host {name}\n" + "".join(f"    {key} {value}\n" for key, value in basics.items()))
        return f"ssh://{name}"

    def children(self) -> list[int]:
        """The processes that serve connections, by their ids."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[1]) == self.process.pid:
                    found.append(int(stat.parent.name))
        return found


@contextlib.contextmanager
def sshd(folder: Path, environment: Mapping[str, str]) -> Iterator[Sshd]:
    """Run a server whose sessions have these variables."""
    for name in ("host_key", "user_key", "stranger_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(folder / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    shutil.copy(folder / "user_key.pub", folder / "authorized_keys")
    port = free_port()
    host_key = (folder / "host_key.pub").read_text().rsplit(" ", 1)[0]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key}\n")
    words = " ".join(f'"{key}={value}"' for key, value in environment.items())
    (folder / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nPidFile none\nHostKey {folder / 'host_key'}\n"
        f"AuthorizedKeysFile {folder / 'authorized_keys'}\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
        f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nSetEnv {words}\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where a server that is started by root separates its privileges
    command = [str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")]
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        _wait_for(port, process, folder / "sshd.log")
        yield Sshd(folder, port, process)
    finally:
        process.terminate()
        process.wait()


def wrapper(folder: Path, config: Path) -> Path:
    """Write a program `ssh` that uses a configuration file; returns the folder to put first in PATH."""
    programs = folder / "programs"
    programs.mkdir()
    script = programs / "ssh"
    script.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {config} "$@"\n')
    script.chmod(0o755)
    return programs


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(100):
        if process.poll() is not None:
            raise RuntimeError(f"sshd does not start: {log.read_text()}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"sshd does not listen: {log.read_text()}")
