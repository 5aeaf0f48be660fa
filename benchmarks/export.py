"""Twelve lean networks as files: whether they export, parse and agree, what precision costs, and how fast they are.

Three are trained by `edgelean fit` (CIFAR-10 where EDGELEAN_DATA names the folder of cifar10_jpeg.npz), nine are cut
to half with random weights. Prints the goals beside their figures, and exits 1 when one is missed. Latencies are
medians of the CPU time of calls in turns, on one thread, so that what else runs on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.export_parts.networks import TWELVE
from benchmarks.export_parts.one_network import Row, measure

LARGEST_ERROR = 1e-4
MOST_POINTS = {"fp16": 0.1, "int8": 1.0}
"""By precision, how many points the metric of a trained network may fall; INT8 is judged on images."""

IMAGES = ("digits", "small-cifar")

Goal = tuple[str, str, str, bool]
"""What, the figure, the goal, and whether it is reached."""

HEAD = (
    f"{'network':17s}{'kind':22s}{'parameters':>17s}{'kB':>12s}{'export':>8s}{'error':>9s}"
    f"{'full/lean':>10s}{'eager/lean':>11s}{'fp32/int8':>10s}{'fp16':>7s}{'int8':>7s}  TensorRT-RTX fp32, fp16"
)


def line_of(row: Row) -> str:
    """Return one line of the table."""
    start = f"{row.name:17s}{row.kind:22s}"
    if row.problem:
        return f"{start}  not exported: {row.problem}"
    counts = f"{row.parameters[0]:,d} {row.parameters[1]:,d}"
    sizes = f"{row.sizes_bytes[0] / 1e3:.0f} {row.sizes_bytes[1] / 1e3:.0f}"
    figures = f"{counts:>17s}{sizes:>12s}{row.export_s:7.1f}s{row.error:9.1e}"
    ratios = [row.ratio("full", "lean"), row.ratio("eager", "lean"), row.ratio("lean", "int8")]
    texts = ["-" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
    drops = [f"{row.drops[name]:.2f}" if name in row.drops else "-" for name in MOST_POINTS]
    engines = "; ".join(text if built else f"NO: {text}" for built, text in row.engines.values())
    return f"{start}{figures}{texts[0]:>10s}{texts[1]:>11s}{texts[2]:>10s}{drops[0]:>7s}{drops[1]:>7s}  {engines}"


def goals(rows: Sequence[Row]) -> list[Goal]:
    """Compare the figures with the goals."""
    exported = [row for row in rows if not row.problem]
    worst = max((row.error for row in exported), default=float("nan"))
    found: list[Goal] = [
        ("exported", f"{len(exported)} of {len(rows)}", "all", len(exported) == len(rows)),
        ("largest error in onnxruntime, FP32", f"{worst:.1e}", f"under {LARGEST_ERROR:g}", worst < LARGEST_ERROR),
    ]
    for name, most in MOST_POINTS.items():
        for row in exported:
            if name in row.drops and (name != "int8" or row.name in IMAGES):
                what = f"{name.upper()}, points that {row.name} loses of {100 * (row.metric or 0):.1f}"
                found.append((what, f"{row.drops[name]:.2f}", f"under {most:g}", row.drops[name] < most))
    if find_spec("tensorrt_rtx") is not None:
        built = [row for row in exported if all(good for good, _ in row.engines.values())]
        found.append(
            ("parsed and built by TensorRT-RTX", f"{len(built)} of {len(rows)}", "all", len(built) == len(rows))
        )
    return found


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter trainings")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="may be repeated")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    print(HEAD)
    started, rows = time.perf_counter(), []
    for entry in TWELVE:
        if arguments.only and entry.name not in arguments.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(entry, Path(folder), arguments.quick))
        print(line_of(rows[-1]), flush=True)
    print(f"\n{len(rows)} networks in {time.perf_counter() - started:.0f} s")
    reached = goals(rows)
    for what, figure, goal, good in reached:
        print(f"{what:60s}{figure:>14s}   goal: {goal:12s}{'' if good else '  MISSED'}")
    if find_spec("tensorrt_rtx") is None:
        print("TensorRT-RTX left out: pip install 'edgelean[tensorrt-rtx]'")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": [row.to_json() for row in rows], "goals": reached}, indent=1))
    return 0 if all(goal[3] for goal in reached) else 1


if __name__ == "__main__":
    sys.exit(main())
