"""What this machine can do, from four short kernels: the numbers that no board file can know."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from edgelean.board import Board, Fact, load_board
from edgelean.sensors import estimate_power, find_sensor
from edgelean.sensors.window import Work
from edgelean.target.latency import Patience, time_calls
from edgelean.target.runtime import OnnxRuntimeCpu

ADDS = 16
SIDE = 384
LENGTH = 1 << 22
QUICK = Patience(warm_up_s=0.03, least_s=0.06, cap_s=0.12)
POWER_WINDOW_S = 0.2
HERE = "measured here with onnxruntime on one thread"


def probe_this_machine(board: Board | None = None, root: Path = Path("/")) -> Board:
    """Return the board of this machine with its unknown numbers measured, in about half a second.

    A chain of tiny additions gives the overhead of an operator, a matrix product in FP32 and one in INT8 the arithmetic
    that is really reached (so the efficiency is 1), a long addition the bandwidth. The power comes from RAPL where it
    can be read, idle and under the matrix product; else it is codecarbon's estimate, which takes a second or two, and a
    guess.

    Parameters
    ----------
    board
        A description of this machine; numbers that it has are kept. Without one the shipped one.
    root
        Where sysfs is looked for.
    """
    board = board or load_board("this-machine")
    if all(fact.value is not None for fact in _wanted(board)):
        return board
    product = _kernel("MatMul", (SIDE, SIDE))
    product_s = _seconds(product)
    whole_s = _seconds(_kernel("MatMulInteger", (SIDE, SIDE)))
    chain_s = _seconds(_kernel("Add", (1,), ADDS))
    addition_s = _seconds(_kernel("Add", (LENGTH,)))
    idle, most = _power(board, product, root)
    one = Fact(value=1.0, source="the measured rates are those that are reached", confidence="measured")
    return _filled(
        board,
        {
            "compute": {
                "fp32_tflops": _fact(2 * SIDE**3 / product_s / 1e12),
                "int8_tops": _fact(2 * SIDE**3 / whole_s / 1e12),
                "efficiency": one,
            },
            "memory": {"bandwidth_gb_s": _fact(12 * LENGTH / addition_s / 1e9), "bandwidth_efficiency": one},
            "launch": {"overhead_us": _fact(chain_s / ADDS * 1e6)},
            "power": {"idle_w": idle, "max_w": most},
        },
    )


def _wanted(board: Board) -> tuple[Fact, ...]:
    return (
        board.compute.fp32_tflops,
        board.compute.int8_tops,
        board.memory.bandwidth_gb_s,
        board.launch.overhead_us,
        board.power.max_w,
    )


def _filled(board: Board, sections: dict[str, dict[str, Fact]]) -> Board:
    """Return a copy of the board in which the facts without a value are replaced."""
    update: dict[str, Any] = {}
    for name, facts in sections.items():
        section = getattr(board, name)
        unknown = {key: fact for key, fact in facts.items() if getattr(section, key).value is None}
        update[name] = section.model_copy(update=unknown)
    return board.model_copy(update=update)


def _fact(value: float) -> Fact:
    return Fact(value=value, source=HERE, confidence="measured")


def _seconds(work: Work) -> float:
    """Return the median duration of one call in s."""
    return time_calls(work, 50, QUICK).interval.value / 1e3


def _power(board: Board, work: Work, root: Path) -> tuple[Fact, Fact]:
    """Return the power in W while nothing is done and under ``work``."""
    sensor = find_sensor(board, root)
    if sensor is None:
        estimate = estimate_power()
        guess = Fact(value=estimate.watts, source=estimate.method, confidence="guess")
        return guess, guess
    idle_w = sensor.over(lambda: time.sleep(0.005), POWER_WINDOW_S).watts
    most_w = sensor.over(work, POWER_WINDOW_S).watts
    source = f"measured here: {sensor.method}"
    return (
        Fact(value=min(idle_w, most_w), source=source, confidence="measured"),
        Fact(value=most_w, source=source, confidence="measured"),
    )


def _kernel(kind: str, shape: tuple[int, ...], repeats: int = 1) -> Work:
    """Return a call that computes ``repeats`` operators of one kind, each applied to the result of the one before."""
    from onnx import TensorProto, helper

    nodes = [helper.make_node(kind, [f"x{i}", f"x{i}"], [f"x{i + 1}"]) for i in range(repeats)]
    read, written = TensorProto.FLOAT, TensorProto.FLOAT
    if kind == "MatMulInteger":
        read, written = TensorProto.UINT8, TensorProto.INT32
    inputs = [helper.make_tensor_value_info("x0", read, shape)]
    outputs = [helper.make_tensor_value_info(f"x{repeats}", written, shape)]
    graph = helper.make_graph(nodes, "probe", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    dtype = helper.tensor_dtype_to_np_dtype(read)
    return OnnxRuntimeCpu().open(
        model.SerializeToString(), {"x0": np.full(shape, 0.5 if read == TensorProto.FLOAT else 1, dtype)}
    )
