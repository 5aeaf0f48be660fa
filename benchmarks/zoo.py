"""A zoo of networks that nobody configured: what can be cut from each, and whether that is exact.

Prints one line per network and the goals beside their figures, and exits 1 when a goal is missed. Times are those of
the processor, so that what else runs on the machine does not count. Torch-Pruning runs
next to it where it is installed (``pip install torch-pruning --no-deps``); `transformers` and timm are optional, too.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import selectors
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.zoo_networks.all import QUICK, all_networks
from benchmarks.zoo_networks.judge import Row, judge
from benchmarks.zoo_networks.network import Network

LEAST_SHARE, LEAST_NETWORKS, MOST_SECONDS, MOST_CUT_MS, PEER_SECONDS = 0.4, 0.95, 10.0, 100.0, 60.0
MOST_MEMORY = 2.0
"""What the analysis may add to the memory, as a multiple of the parameters."""
LARGE = ("resnet50", "gpt_12_layers")
"""A ResNet-50 and a transformer of 12 layers: what analysis may take is said of these."""

Goal = tuple[str, str, str, bool]
"""What, the figure, the goal, and whether it is reached."""


def line_of(row: Row) -> str:
    """Return one line of the table."""
    shares = f"{row.parameters / 1e6:8.2f} {row.axes:5d} {row.most:6.0%} {row.halved:6.0%}"
    figures = f"{shares} {row.seconds:7.1f} {row.cut_ms:6.0f}"
    outcome = row.problem or f"{row.error:8.1e} {row.effect:8.1e}  {row.training:4s}  {row.export}"
    return f"{row.name:44s}{figures}  {outcome}"


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Compare the figures with the goals."""
    exact = [row for row in rows if row.exact()]
    enough = [row for row in exact if row.halved >= LEAST_SHARE]
    training = [row for row in rows if row.training == "yes"]
    exported = [row for row in rows if row.export in ("yes", "neither before nor after")]
    found = [
        ("exact on all that are cut", f"{len(exact)} of {len(rows)}", "all", len(exact) == len(rows)),
        (
            f"networks that lose {LEAST_SHARE:.0%} when every axis is halved",
            f"{len(enough)} of {len(rows)}",
            f"over {LEAST_NETWORKS:.0%}",
            len(enough) > LEAST_NETWORKS * len(rows),
        ),
        ("a training step after the cut", f"{len(training)} of {len(rows)}", "all", len(training) == len(rows)),
        ("an export after the cut", f"{len(exported)} of {len(rows)}", "all", len(exported) == len(rows)),
    ]
    for row in rows:
        if row.name in LARGE:
            what = f"analysis of {row.name} ({row.parameters / 1e6:.0f} million parameters), CPU"
            found.append((what, f"{row.seconds:.1f} s", f"under {MOST_SECONDS:g} s", row.seconds < MOST_SECONDS))
            what, goal = f"memory that this adds, over that of {row.name}", f"under {MOST_MEMORY:g}x"
            found.append((what, f"{row.memory:.2f}x", goal, not row.memory >= MOST_MEMORY))
        if row.name == LARGE[0]:
            goal = f"under {MOST_CUT_MS:g} ms"
            found.append((f"one cut of {row.name}, CPU", f"{row.cut_ms:.0f} ms", goal, row.cut_ms < MOST_CUT_MS))
    return found


def peer_verdicts(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Try Torch-Pruning on some networks; a network on which it does not return in time costs a new process."""
    left = list(names)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    while left:
        command = [sys.executable, "-m", "benchmarks.zoo_networks.peer", *left]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        for message in _messages(process):
            if "verdict" in message:
                left.remove(message["name"])
                yield message
        hung = process.poll() is None
        process.kill()
        process.wait()
        if left:
            verdict = "does not return" if hung else "ends the process"
            yield {"name": left.pop(0), "left": 1.0, "verdict": verdict}


def _messages(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """Yield the lines of a process until it ends, or says nothing for too long."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while selector.select(timeout=PEER_SECONDS):
            line = process.stdout.readline()
            if not line:
                process.wait(timeout=PEER_SECONDS)
                return
            if line.startswith("{"):
                yield json.loads(line)


def compare(rows: Sequence[Row]) -> dict[str, str]:
    """Print what Torch-Pruning makes of the same networks; return its verdicts by name."""
    if find_spec("torch_pruning") is None:
        print("\nTorch-Pruning left out: it is not installed (pip install torch-pruning --no-deps)")
        return {}
    print("\nTorch-Pruning, no configuration, half of the channels: parameters that go, and whether that is exact")
    verdicts = {}
    for message in peer_verdicts([row.name for row in rows]):
        verdicts[message["name"]] = message["verdict"]
        print(f"{message['name']:44s}{1 - message['left']:6.0%}  {message['verdict']}", flush=True)
    exact = sum(verdict == "exact" for verdict in verdicts.values())
    print(f"exact: {exact} of {len(verdicts)}; edgelean: {sum(row.exact() for row in rows)} of {len(rows)}")
    return verdicts


def chosen(networks: Sequence[Network], only: Sequence[str], quick: bool) -> list[Network]:
    """Return the networks to try: those whose name matches one of some patterns, or a third, or all."""
    if only:
        return [network for network in networks if any(re.search(pattern, network.name) for pattern in only)]
    return [network for network in networks if not quick or network.name in QUICK]


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a third of the networks, without Torch-Pruning")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="networks that match; may be repeated"
    )
    parser.add_argument("--no-peer", action="store_true", help="without Torch-Pruning")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    networks, notes = all_networks()
    print(*notes, sep="\n", end="\n" if notes else "")
    print(f"{'network':44s} million  axes   most   half   CPU s cut ms     error   effect  step  export")
    # What torch imports for its first trace is no part of what a network takes.
    judge(Network("warm", "warm", lambda: (nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), (torch.randn(2, 4),))))
    started, rows = time.perf_counter(), []
    for network in chosen(networks, arguments.only, arguments.quick):
        rows.append(judge(network))
        print(line_of(rows[-1]), flush=True)
    reached = goals(rows)
    print(f"\n{len(rows)} networks in {time.perf_counter() - started:.0f} s")
    for what, figure, goal, good in reached:
        print(f"{what:60s}{figure:>14s}   goal: {goal:10s}{'' if good else '  MISSED'}")
    verdicts = {} if arguments.quick or arguments.no_peer else compare(rows)
    if arguments.json:
        plain = {"rows": [row.to_json() for row in rows], "goals": reached, "torch_pruning": verdicts}
        arguments.json.write_text(json.dumps(plain, indent=1))
    return 0 if all(goal[3] for goal in reached) else 1


if __name__ == "__main__":
    sys.exit(main())
