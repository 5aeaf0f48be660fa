"""The agent of a board as a test meets it: as a program with a home of its own, and as modules."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import subprocess
import sys
from types import SimpleNamespace

from edgelean.shelf import shelf
from edgelean.target.agent import pack_agent

FOLDER = shelf("devices") / "agent"
PARTS = ("agent", "cache", "common", "facts", "nvml", "power", "runtimes", "windows")
PATIENCE = {"warm_up_s": 0.01, "least_s": 0.01, "cap_s": 0.1, "half_width": 0.2, "least_calls": 6, "limit_ms": None}


@contextlib.contextmanager
def modules():
    """The modules of the agent, imported as on a board: without edgelean around them."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in PARTS})
    finally:
        sys.path.remove(str(FOLDER))
        for name in PARTS:
            sys.modules.pop(name, None)


def sha(content):
    return hashlib.sha256(content).hexdigest()


class Board:
    """A home and a /tmp for an agent that runs as a program."""

    def __init__(self, folder):
        self.temporary, self.cache = folder / "tmp", folder / "home" / "edgelean"
        self.temporary.mkdir(parents=True)
        self.program = folder / "agent.pyz"
        self.program.write_bytes(pack_agent())
        self.environment = {
            "PATH": os.environ["PATH"],
            "TMPDIR": str(self.temporary),
            "XDG_CACHE_HOME": str(self.cache.parent),
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
        }
        self.python = (sys.executable,)

    def start(self, **more):
        return subprocess.Popen(
            [*self.python, str(self.program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
            **more,
        )

    def ask(self, content=b"", **request):
        """Return all events that a request leads to; the input stays open until the last one."""
        with self.start() as process:
            with contextlib.suppress(BrokenPipeError):  # it may refuse before it has read everything
                process.stdin.write(json.dumps(request).encode() + b"\n" + content)
                process.stdin.flush()
            events = [json.loads(line) for line in process.stdout]
            process.stdin.close()
            assert process.stderr.read() == b""
        assert process.returncode == 0
        assert [event["event"] for event in events[:-1]] == ["progress"] * (len(events) - 1)
        return events

    def answer(self, content=b"", **request):
        return self.ask(content, **request)[-1]

    def store(self, content, ending):
        return self.answer(content, command="store", sha256=sha(content), ending=ending, size=len(content))

    def put(self, model, feeds):
        """Lay a model and its inputs where the agent would have stored them."""
        self.cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        for content, ending in ((model, "onnx"), (feeds, "npz")):
            (self.cache / f"{sha(content)}.{ending}").write_bytes(content)

    def measure(self, model, feeds, **changed):
        self.put(model, feeds)
        return self.ask(command="measure", **measurement(model, feeds, **changed))

    def names(self):
        return sorted(file.name for file in self.cache.iterdir()) if self.cache.is_dir() else []


def measurement(model, feeds, **changed):
    request = {
        "model": sha(model),
        "feeds": sha(feeds),
        "runtime": "onnxruntime CPU",
        "repeats": 2,
        "pause_s": 0.01,
        "patience": {**PATIENCE, "percentile": 50},
        "energy": None,
    }
    return {**request, **changed}


def fake_vcgencmd(folder):
    """Write a program that says what a Raspberry Pi 5 would: 2 A at 5 V, and a little more, never the same twice."""
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "vcgencmd"
    script.write_text(
        "#!/bin/sh\n[ $1 = pmic_read_adc ] || { echo throttled=0x0; exit; }\n"
        "echo '  VDD_CORE_V volt(15)=5.0V'; echo \"  VDD_CORE_A current(7)=2.0000$$A\"\n"
    )
    script.chmod(0o755)
