"""The agent: measures a model on the board that it was copied to. Needs numpy and onnxruntime or tensorrt, Python 3.8.

    python3 agent.py '{"command": "facts"}'

One request in JSON, as an argument or as the first line of the input. The answer is JSON lines: any number of
``{"event": "progress", ...}`` and then one ``{"event": "result", ...}``, or one ``{"event": "error", "kind": ...,
"message": ..., "remedy": ...}``. The commands:

    facts    what this board is
    store    keep the ``size`` bytes that follow the request, if their SHA-256 is ``sha256``; ``ending`` onnx or npz
    measure  latency and energy of a stored model
    idle     the power of the board that does nothing
    clean    remove stored files, or everything that the agent ever put here

Files go to ~/.cache/edgelean, or to a folder of this user alone in /tmp; /tmp/edgelean.lock belongs to all users and
stays. It opens no connection, runs no other program than ``vcgencmd``, and loads only files whose hashes it was told.
A request that came through the input is over when the input ends: whoever asked has gone.
"""

from __future__ import annotations

import errno
import json
import math
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import facts
import power
from cache import Cache
from common import RefusedError
from nvml import Gpu, Nvml
from runtimes import INSTALL, PROVIDERS, Cuda, Runtime, open_onnxruntime, open_tensorrt
from windows import Sensor, Window

WATCH_EVERY_S = 0.05
# The host's verdict holds however often one looks at it, for which it needs more standard deviations than usual.
CLEAR = 5.0
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)

Say = Callable[[str], None]


class Channel:
    """The way back: JSON lines, on a copy of stdout that no library prints on."""

    def __init__(self) -> None:
        self._out = os.dup(1)
        os.dup2(2, 1)

    def send(self, event: str, **words: Any) -> None:
        """Send one event; ends the program where nobody listens any more."""
        line = json.dumps({"event": event, **words}, allow_nan=False).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._out, line) :]
        except BrokenPipeError:
            raise SystemExit(1) from None

    def say(self, words: str) -> None:
        """Send what happens now."""
        self.send("progress", message=words)


def time_calls(call: Callable[[], Any], watch: facts.Watch, plan: Dict[str, Any]) -> Dict[str, Any]:
    """Warm up, then time calls until the interval of the percentile is narrow or the time is up.

    The stop rule takes the ranks of the interval from the normal approximation of the binomial distribution; the exact
    interval is the business of the host, which gets every sample.
    """
    warm_up(call, plan["warm_up_s"])
    samples: List[float] = []
    empty_ms = sorted(duration_ms(lambda: None) for _ in range(101))[50]
    begin_s = look_s = now_s = time.perf_counter()
    next_look, narrow, out_of_time = plan["least_calls"], False, False
    while not (narrow or out_of_time):
        samples.append(max(duration_ms(call) - empty_ms, 0.0))
        now_s = time.perf_counter()
        if now_s >= look_s:
            watch.look()
            look_s = time.perf_counter() + WATCH_EVERY_S
        out_of_time = now_s - begin_s >= plan["cap_s"] and len(samples) >= plan["least_calls"]
        if len(samples) >= next_look and now_s - begin_s >= plan["least_s"]:
            narrow = half_width(samples, plan["percentile"]) <= plan["half_width"] and is_clear(samples, plan)
            next_look = math.ceil(len(samples) * 1.25)
    return {"samples_ms": [round(sample, 6) for sample in samples], "narrow": narrow}


def is_clear(samples: List[float], plan: Dict[str, Any]) -> bool:
    """Tell whether far too few or too many samples are over the limit for its verdict to be open; True without one."""
    if plan["limit_ms"] is None:
        return True
    share, over = 1 - plan["percentile"] / 100, sum(sample > plan["limit_ms"] for sample in samples)
    return bool(abs(over - len(samples) * share) > CLEAR * math.sqrt(len(samples) * share * (1 - share)))


def duration_ms(call: Callable[[], Any]) -> float:
    """Return how long one call takes."""
    begin_s = time.perf_counter()
    call()
    return (time.perf_counter() - begin_s) * 1e3


def warm_up(call: Callable[[], Any], seconds: float) -> None:
    """Call for ``seconds``, and up to three times as long until two blocks in a row agree within 5 %."""
    means: List[float] = []
    while len(means) < 9:
        begin_s, calls = time.perf_counter(), 0
        while calls == 0 or time.perf_counter() - begin_s < seconds / 3:
            call()
            calls += 1
        means.append((time.perf_counter() - begin_s) / calls)
        if len(means) >= 3 and abs(means[-1] - means[-2]) <= 0.05 * means[-2]:
            return


def yardstick_s() -> float:
    """Return how long a fixed piece of arithmetic takes on this core now: the clock, where none is told.

    Running sums of 2048 whole numbers; the shortest of nine blocks of 200, which nothing but the clock makes shorter.
    """
    import numpy as np

    numbers = np.arange(2048, dtype=np.int64)
    sums = np.empty_like(numbers)

    def block() -> None:
        for _ in range(200):
            np.add.accumulate(numbers, 0, None, sums)

    return min(duration_ms(block) for _ in range(9)) / 1e3


def half_width(samples: List[float], percentile: float) -> float:
    """Return half of the width of the 95 % interval of a percentile, as a share of it; infinite where it is open."""
    ordered, share = sorted(samples), percentile / 100
    reach = 1.96 * math.sqrt(len(ordered) * share * (1 - share))
    lower, upper = math.floor(len(ordered) * share - reach), math.ceil(len(ordered) * share + reach)
    if lower < 1 or upper >= len(ordered):
        return math.inf
    return (ordered[upper] - ordered[lower - 1]) / 2 / ordered[min(math.ceil(len(ordered) * share), len(ordered)) - 1]


def read_energy(call: Callable[[], Any], bus_id: Optional[str], plan: Dict[str, Any], say: Say) -> Dict[str, Any]:
    """Return windows of energy, of nothing and of the model, from the best sensor that lasts."""
    line, refused = power.line_up(plan["sensor"], bus_id)
    lost: List[str] = []
    for sensor in line if plan["on_loss"] == "next" else line[:1]:
        found, failure = tried(sensor, call, plan, say)
        if not failure:
            since = f"since {'; '.join(lost)}: " if lost else ""
            return {**found, "sensor": sensor.name, "method": since + sensor.method, "refused": refused}
        lost.append(failure)
    if lost:
        raise RefusedError("sensor", "; ".join(lost), "look at the sensor on the board, then resume")
    return {"windows": [], "idle": [], "sensor": "", "method": "", "refused": refused}


def tried(sensor: Sensor, call: Callable[[], Any], plan: Dict[str, Any], say: Say) -> Tuple[Dict[str, Any], str]:
    """Return the windows of one sensor, or why it failed."""
    try:
        return windows(sensor, call, plan, say), ""
    except RefusedError as error:
        return {}, str(error)


def windows(sensor: Sensor, call: Callable[[], Any], plan: Dict[str, Any], say: Say) -> Dict[str, Any]:
    """Return windows of idleness, then windows of work until their mean is known well enough or there are most."""
    say("reading the idle power")
    count = plan["idle_windows"] if plan["idle_s"] > 0 else 0
    idle = [over(sensor, rest, plan["idle_s"] / count, plan) for _ in range(count)]
    warm_up(call, plan["warm_up_s"])
    before = facts.state(None)
    found: List[Window] = []
    while len(found) < plan["windows"] or (len(found) < plan["most_windows"] and spread(found) > plan["half_width"]):
        say(f"energy window {len(found) + 1}")
        found.append(over(sensor, call, plan["window_s"], plan))
    return {"windows": found, "idle": idle, "before": before, "after": facts.state(None)}


def over(sensor: Sensor, work: Callable[[], Any], seconds: float, plan: Dict[str, Any]) -> Window:
    """Return one window, begun at a random moment so that it is not in step with the sensor."""
    time.sleep(random.uniform(0, plan["longest_delay_s"]))
    return sensor.over(work, seconds)


def spread(found: List[Window]) -> float:
    """Return twice the standard error of the energy of a call, as a share of its mean."""
    each = [window["joules"] / window["calls"] for window in found]
    mean = sum(each) / len(each)
    deviation = math.sqrt(sum((joules - mean) ** 2 for joules in each) / max(len(each) - 1, 1))
    return 2 * deviation / math.sqrt(len(each)) / mean


def rest() -> None:
    """Do nothing for a moment."""
    time.sleep(0.005)


def measure(request: Dict[str, Any], cache: Cache, say: Say) -> Dict[str, Any]:
    """Return raw data: windows of energy, single latencies, and the state of the board before and after.

    The energy comes first, so that the idle power is not that of a board which is still warm from the timing.
    """
    model, arrays = cache.stored(request["model"] + ".onnx", request["feeds"] + ".npz")
    feeds, patience = load_feeds(arrays), request["patience"]
    with cache.alone(str(request.get("who", "somebody"))):
        runtime, gpu = open_runtime(request["runtime"], model, feeds, cache.folder, say)
        call, energy = runtime.fresh(), None
        if request["energy"]:
            energy = read_energy(call, runtime.bus_id, request["energy"], say)
        watch, repeats, paces_s = facts.Watch(gpu if runtime.on_gpu else None), [], [yardstick_s()]
        warm_up(call, patience["warm_up_s"])
        before = after = facts.state(gpu)
        for repeat in range(request["repeats"]):
            say(f"timing calls, session {repeat + 1} of {request['repeats']}")
            time.sleep(random.uniform(0, request["pause_s"]))
            repeats.append(time_calls(runtime.fresh(), watch, patience))
            after = facts.state(gpu)
            paces_s.append(yardstick_s())
    found = {"repeats": repeats, "energy": energy, "before": before, "after": after, "clocks_mhz": watch.clocks_mhz}
    return {**found, **runtime.words, "paces_s": paces_s}


def open_runtime(
    kind: str, model: Path, feeds: Dict[str, Any], folder: Path, say: Say
) -> Tuple[Runtime, Optional[Gpu]]:
    """Return the model in the runtime that was asked for, tried once, and the GPU it runs on."""
    say(f"opening the model in {kind}")
    if kind == "tensorrt":
        cuda = Cuda()
        gpu = only_gpu(cuda.bus_id())
        return open_tensorrt(model, feeds, folder, facts.device_name(gpu), say, cuda), gpu
    if kind not in PROVIDERS:
        raise RefusedError("request", f"no runtime is called {kind!r}", "use edgelean of this version")
    runtime = open_onnxruntime(kind, model, feeds)
    return runtime, only_gpu(runtime.bus_id) if runtime.on_gpu else None


def only_gpu(bus_id: Optional[str]) -> Optional[Gpu]:
    """Return the GPU that NVML knows, None where there is none or it is not clear which."""
    try:
        return Nvml().gpu(bus_id)
    except RefusedError:
        return None


def load_feeds(file: Path) -> Dict[str, Any]:
    """Return the inputs by name; nothing is unpickled."""
    try:
        import numpy as np
    except ImportError as error:
        raise RefusedError("missing", f"numpy cannot be imported: {error}", INSTALL) from None
    try:
        with np.load(str(file), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError) as error:
        raise RefusedError("request", f"the inputs cannot be read: {error}", "send them again") from None


def idle(request: Dict[str, Any], cache: Cache) -> Dict[str, Any]:
    """Return one window in which the board does nothing, from the first sensor that works."""
    with cache.alone(str(request.get("who", "somebody"))):
        line, refused = power.line_up(request["sensor"], None)
        for sensor in line:
            found, failure = resting(sensor, request["seconds"])
            if not failure:
                return {"idle": found, "method": sensor.method, "refused": refused}
            refused.append({"detail": failure, "remedy": "look at the sensor on the board"})
    return {"idle": [], "method": "", "refused": refused}


def resting(sensor: Sensor, seconds: float) -> Tuple[List[Window], str]:
    """Return one window without work, or why the sensor failed."""
    try:
        return [sensor.over(rest, seconds)], ""
    except RefusedError as error:
        return [], str(error)


def answer(request: Dict[str, Any], cache: Cache, say: Say) -> Dict[str, Any]:
    """Do what a request asks and return the result."""
    command = request.get("command")
    if command == "facts":
        return facts.examine(cache.folder)
    if command == "store":
        return cache.store(request["sha256"], request["ending"], int(request["size"]), read_input)
    if command == "measure":
        return measure(request, cache, say)
    if command == "idle":
        return idle(request, cache)
    if command == "clean":
        return cache.clean(request.get("files"))
    raise RefusedError("request", f"no command is called {command!r}", "use edgelean of this version")


def read_input(count: int) -> bytes:
    """Return up to so many bytes of the input, nothing at its end."""
    return os.read(0, count)


def read_request(words: List[str]) -> Dict[str, Any]:
    """Return the request of the command line, else of the first line of the input."""
    line = words[0].encode() if words else b""
    while not words and not line.endswith(b"\n"):
        byte = read_input(1)
        if not byte:
            break
        line += byte
    try:
        request = json.loads(line)
    except ValueError as error:
        raise RefusedError("request", f"the request is not JSON: {error}", "see the first lines of agent.py") from None
    if not isinstance(request, dict):
        raise RefusedError("request", "the request is not an object", "see the first lines of agent.py")
    return request


def stop_with_the_input() -> None:
    """Stop when the input ends: the connection is gone, and nobody waits for the result."""

    def watch() -> None:
        while read_input(4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def serve(words: List[str], channel: Channel) -> None:
    """Answer one request."""
    try:
        request = read_request(words)
        if not words and request.get("command") in ("measure", "idle"):
            stop_with_the_input()
        channel.send("result", **answer(request, Cache.at_home(), channel.say))
    except RefusedError as error:
        channel.send("error", kind=error.kind, message=str(error), remedy=error.remedy)
    except KeyError as error:
        channel.send(
            "error", kind="request", message=f"the request lacks {error}", remedy="use edgelean of this version"
        )
    except OSError as error:
        kind, remedy = "runtime", "look at the board"
        if error.errno in DISK_FULL:
            kind, remedy = "disk", "free some space on the board"
        elif error.errno in READ_ONLY:
            kind, remedy = "folder", "give the user a folder ~/.cache or /tmp that can be written"
        channel.send("error", kind=kind, message=f"{error.filename or 'a file'}: {error.strerror}", remedy=remedy)


def main() -> int:
    """Run the command line; returns the exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    serve(sys.argv[1:], Channel())
    return 0


if __name__ == "__main__":
    sys.exit(main())
