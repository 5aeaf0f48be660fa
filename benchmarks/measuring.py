"""How exact the measuring is, on simulated sensors and simulated models, beside windows as others take them.

Energy: a counter with ticks of 100 ms, a meter that sees the last 25 ms of every 100 ms, and one that averages over a
second, in front of loads of constant power and of power that varies inside a call, right after another model ran.
Verdicts: ten thousand models around their budget, timed and judged by the code that judges real ones. Clocks are
simulated, so ``--quick`` takes two minutes, and all of it a quarter of an hour.

Prints every figure beside its goal, and exits 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

import numpy as np
from scipy import optimize, stats

sys.path.insert(0, str(Path(__file__).parents[1]))

from edgelean.judging import outcome
from edgelean.reading import Figure, Provenance, Reading
from edgelean.sensors.protocol import EnergyProtocol, measure_energy, measure_idle, per_call
from edgelean.sensors.window import CounterSensor, PowerSensor
from edgelean.target.latency import all_samples, pooled, time_calls, verdict
from edgelean.target.local import IN_THE_LOOP, THOROUGH, Routine
from tests.simulated_sensors import (
    TICK_S,
    Machine,
    Steps,
    averaging_meter,
    blind_counter,
    blind_meter,
    on_off,
    ticking_counter,
)

SimulatedSensor = CounterSensor | PowerSensor
Way = Callable[[Machine, SimulatedSensor, Steps, float], float]
"""Measures calls of a load for so many seconds, and returns J per call."""

WINDOWS_S = (0.23, 1.0, 5.0)
JUDGED_S = 1.0
ENERGY_ERROR = 0.01
WRONG_VERDICTS = 0.01
JITTER = 0.002
"""Calls differ in length by this share; those of a GPU that does nothing else do."""
BEFORE_W, IDLE_W = 150.0, 12.0

SENSORS: dict[str, Callable[[Machine, float], SimulatedSensor]] = {
    "counter, 100 ms ticks": ticking_counter,
    "meter, 25 of 100 ms": blind_meter,
    "meter, 1 s average": averaging_meter,
}
BLIND_COUNTERS: dict[str, Callable[[Machine, float], SimulatedSensor]] = {
    "known": blind_counter,
    "not known": lambda machine, phase_s: blind_counter(machine, phase_s, known=False),
}
LOADS: Mapping[str, Steps] = {
    "constant, calls of 5 ms": ((0.005, 80.0),),
    "varying over 20 ms": on_off(0.02),
    "varying over 50 ms": on_off(0.05),
    "varying over 100 ms": on_off(0.1),
    "varying over 130 ms": on_off(0.13),
}
MODELS, BUDGET_MS, PERCENTILES = 10_000, 2.0, (50, 90, 99)


# -- energy ------------------------------------------------------------------------------------------------------------


def ours(machine: Machine, sensor: SimulatedSensor, load: Steps, seconds: float) -> float:
    """One window of edgelean, with its pauses at the idle power that the same sensor measured before."""
    idle = measure_idle(sensor, EnergyProtocol(idle_s=0.4), sleep=machine.sleep)
    machine.draw(BEFORE_W, 0.5)
    return per_call([sensor.over(machine.work(load), seconds)], idle).gross_mj.value / 1e3


def naive(machine: Machine, sensor: SimulatedSensor, load: Steps, seconds: float) -> float:
    """Take the difference of a counter before and after, or the mean of a power that is polled every 20 ms."""
    if isinstance(sensor, CounterSensor):
        begin_j = sensor.read_j()
        calls, _, _ = back_to_back(machine, load, seconds)
        return (sensor.read_j() - begin_j) / calls
    with machine.watch(sensor.read_w, machine.clock, 0.02) as samples:
        calls, begin_s, end_s = back_to_back(machine, load, seconds)
    return fmean(watts for _, watts in samples) * (end_s - begin_s) / calls


def as_zeus(machine: Machine, sensor: SimulatedSensor, load: Steps, seconds: float) -> float:
    """Do what zeus 0.16 does, by its source: a counter before and after, or a power that is polled and integrated.

    It is polled all the time, at half its tick; the integral goes from the first to the last sample inside the window.
    """
    if isinstance(sensor, CounterSensor):
        return naive(machine, sensor, load, seconds)
    with machine.watch(sensor.read_w, machine.clock, TICK_S / 2) as samples:
        calls, begin_s, end_s = back_to_back(machine, load, seconds)
    inside = [sample for sample in samples if begin_s <= sample[0] <= end_s]
    return math.fsum((b_s - a_s) * (a_w + b_w) / 2 for (a_s, a_w), (b_s, b_w) in pairwise(inside)) / calls


def as_zeus_warm(machine: Machine, sensor: SimulatedSensor, load: Steps, seconds: float) -> float:
    """Do the same after the work has run for two seconds, which is up to the user of zeus."""
    back_to_back(machine, load, 2.0)
    return as_zeus(machine, sensor, load, seconds)


def back_to_back(machine: Machine, load: Steps, seconds: float) -> tuple[int, float, float]:
    """Make calls for so long; return how many, and when they began and ended."""
    work, begin_s, calls = machine.work(load), machine.clock(), 0
    while machine.clock() - begin_s < seconds:
        work()
        calls += 1
    return calls, begin_s, machine.clock()


WAYS: Mapping[str, Way] = {"naive": naive, "zeus": as_zeus, "zeus, warmed up": as_zeus_warm, "ours": ours}


@dataclass(frozen=True)
class EnergyError:
    """How wrong the energy of a call is over many phases of the sensor, as shares, and how long the work ran for it."""

    sensor: str
    load: str
    seconds: float
    way: str
    worst: float
    rms: float
    worked_s: float


def energy_error(sensor: str, load: str, seconds: float, way: str, phases: int) -> EnergyError:
    """Measure right after another model ran, once per phase."""
    errors, worked = [], []
    for phase in range(phases):
        machine = Machine(BEFORE_W, IDLE_W, seed=phase, jitter=JITTER)
        machine.draw(BEFORE_W, 0.5)
        opened = (SENSORS | BLIND_COUNTERS)[sensor](machine, TICK_S * phase / phases)
        measured = WAYS[way](machine, opened, LOADS[load], seconds)
        errors.append(measured / (machine.worked_j / machine.calls) - 1)
        worked.append(machine.calls * sum(step_s for step_s, _ in LOADS[load]))
    return EnergyError(
        sensor, load, seconds, way, max(map(abs, errors)), math.sqrt(fmean(e * e for e in errors)), fmean(worked)
    )


def energy_errors(phases: int) -> list[EnergyError]:
    """Return the errors of all sensors, loads, windows and ways."""
    return [
        energy_error(sensor, load, seconds, way, phases)
        for sensor in SENSORS
        for seconds in WINDOWS_S
        for load in LOADS
        for way in WAYS
    ]


def show_energy(errors: Sequence[EnergyError]) -> None:
    """Print worst and root mean square errors of the ways side by side, over all loads, and for one second by load."""
    print(f"{'Energy error in %: worst (rms), seconds of work':53}" + "".join(f"{way:>21}" for way in WAYS))
    rows = [(sensor, seconds, None) for sensor in SENSORS for seconds in WINDOWS_S]
    detail = [(sensor, JUDGED_S, load) for sensor in SENSORS for load in LOADS]
    for sensor, seconds, load in [*rows, *detail]:
        cells = []
        for way in WAYS:
            fitting = [
                e for e in errors if (e.sensor, e.seconds, e.way) == (sensor, seconds, way) and load in (None, e.load)
            ]
            worst, rms = max(e.worst for e in fitting), math.sqrt(fmean(e.rms**2 for e in fitting))
            worked_s = fmean(e.worked_s for e in fitting)
            cells.append(f"{100 * worst:.2f} ({100 * rms:5.2f}) {worked_s:4.1f}")
        print(f"{sensor:21} {seconds:4.2f} s {load or 'all loads':24}" + "".join(f"{cell:>21}" for cell in cells))


def coverage(runs: int) -> dict[str, float]:
    """Run the whole protocol in front of the half blind meter; return how often its intervals hold the truth."""
    gross = net = windows = 0
    load = LOADS["varying over 50 ms"]
    true_mj = 1e3 * math.fsum(step_s * watts for step_s, watts in load)
    net_mj = true_mj - 1e3 * IDLE_W * 0.05
    for run in range(runs):
        machine = Machine(BEFORE_W, IDLE_W, seed=run, jitter=0.01)
        machine.draw(BEFORE_W, 0.5)
        result = measure_energy(
            blind_meter(machine, TICK_S * run / runs),
            machine.work(load),
            EnergyProtocol(warm_up_s=0.2),
            clock=machine.clock,
            sleep=machine.sleep,
            random=random.Random(run).random,
        )
        assert result.net_mj is not None
        gross += result.gross_mj.low <= true_mj <= result.gross_mj.high
        net += result.net_mj.low <= net_mj <= result.net_mj.high
        windows += result.windows
    return {"gross": gross / runs, "net": net / runs, "windows": windows / runs}


# -- verdicts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A distribution of latencies: ``draw`` gives many of them, ``quantile`` the true percentile, for a scale of 1."""

    name: str
    draw: Callable[[np.random.Generator, int], Any]
    quantile: Callable[[float], float]


def bimodal(share: float, slow: float, spread: float) -> Shape:
    """Return calls that take 1, and a share of them that takes longer, each with a spread."""

    def draw(generator: np.random.Generator, count: int) -> Any:
        centre = np.where(generator.random(count) < share, slow, 1.0)
        return centre * (1 + spread * generator.standard_normal(count))

    def below(x: float) -> float:
        fast, late = NormalDist(1.0, spread), NormalDist(slow, slow * spread)
        return (1 - share) * fast.cdf(x) + share * late.cdf(x)

    def quantile(q: float) -> float:
        return float(optimize.brentq(lambda x: below(x) - q, 0.1, 5 * slow))

    return Shape(f"bimodal, {100 * share:g} % {slow:g} times as long", draw, quantile)


def lognormal(sigma: float) -> Shape:
    """Return calls with a long tail."""
    return Shape(
        f"lognormal, sigma {sigma:g}",
        lambda generator, count: generator.lognormal(0.0, sigma, count),
        lambda q: math.exp(sigma * NormalDist().inv_cdf(q)),
    )


def gamma(shape: float) -> Shape:
    """Return calls that wait for several things in a row."""
    return Shape(
        f"gamma, shape {shape:g}",
        lambda generator, count: generator.gamma(shape, 1.0, count),
        lambda q: float(stats.gamma.ppf(q, shape)),
    )


SHAPES = (lognormal(0.03), lognormal(0.4), gamma(4), gamma(60), bimodal(0.08, 2.0, 0.02), bimodal(0.5, 1.2, 0.01))


class FakeModel:
    """Calls of given lengths on a clock of their own."""

    def __init__(self, lengths_s: Iterator[float]) -> None:
        self._lengths_s, self._now_s = lengths_s, 0.0

    def call(self) -> None:
        """Take as long as the next one does."""
        self._now_s += next(self._lengths_s)

    def clock(self) -> float:
        """Return the time; looking at it takes none."""
        return self._now_s


def lengths(shape: Shape, scale_s: float, generator: np.random.Generator) -> Iterator[float]:
    """Yield latencies without end."""
    while True:
        yield from (scale_s * shape.draw(generator, 500)).tolist()


def judge_once(shape: Shape, percentile: float, ratio: float, routine: Routine, seed: int) -> tuple[str, str]:
    """Time a model whose true percentile is ``ratio`` times its budget; return two verdicts.

    The first one is the binomial rule on the calls of one session; the second what a person is shown: the calls of all
    sessions, and undecided while the budget is inside the interval.
    """
    scale_s = ratio * BUDGET_MS / 1e3 / shape.quantile(percentile / 100)
    model = FakeModel(lengths(shape, scale_s, np.random.default_rng(seed)))
    patience = replace(routine.patience, limit_ms=BUDGET_MS)
    repeats = [time_calls(model.call, percentile, patience, model.clock) for _ in range(routine.repeats)]
    interval = pooled(repeats, percentile)
    samples = tuple(all_samples(repeats))
    figure = Figure(interval.value, interval.low, interval.high, "ms", Provenance.MEASURED, "simulated")
    reading = Reading(figure, None, batch=1, percentile=percentile, samples_ms=samples)
    return verdict(repeats[0].samples_ms, BUDGET_MS, percentile), outcome(reading, "latency", BUDGET_MS)


def verdict_shares(models: int, routine: Routine) -> list[dict[str, Any]]:
    """Return the shares of right, wrong and undecided verdicts, per percentile and rule."""
    rows = []
    for percentile in PERCENTILES:
        counts = {"one session": [0, 0, 0], "as shown": [0, 0, 0]}
        for i in range(models):
            ratio = 0.8 + 0.4 * (i + 0.5) / models
            words = judge_once(SHAPES[i % len(SHAPES)], percentile, ratio, routine, seed=i)
            truth = "met" if ratio <= 1 else "not met"
            for count, word in zip(counts.values(), words, strict=True):
                count[0 if word == truth else 2 if word == "undecided" else 1] += 1
        for rule, count in counts.items():
            right, wrong, undecided = (number / models for number in count)
            rows.append(
                {"percentile": percentile, "rule": rule, "right": right, "wrong": wrong, "undecided": undecided}
            )
    return rows


def wrongly_met(models: int, routine: Routine) -> float:
    """Return how often models are called met that are over their budget by a thousandth: the hardest to tell."""
    words = [
        judge_once(SHAPES[i % len(SHAPES)], PERCENTILES[i % len(PERCENTILES)], 1.001, routine, seed=i)
        for i in range(models)
    ]
    return max(fmean(word == "met" for word in rule) for rule in zip(*words, strict=True))


def show_verdicts(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the shares of the verdicts."""
    print(f"\nVerdicts in %, {title}")
    for row in rows:
        shares = "".join(f"{name:>12} {100 * row[name]:6.2f}" for name in ("right", "wrong", "undecided"))
        print(f"p{row['percentile']:<4} {row['rule']:14}{shares}")


@dataclass(frozen=True)
class Goal:
    """A figure, what it should be, and whether it is."""

    what: str
    figure: str
    goal: str
    reached: bool


def energy_goals(errors: Sequence[EnergyError]) -> list[Goal]:
    """Hold the windows of a second against their goal."""
    goals = []
    for sensor in SENSORS:
        worst = {
            way: max(e.worst for e in errors if (e.sensor, e.seconds, e.way) == (sensor, JUDGED_S, way)) for way in WAYS
        }
        others = ", ".join(f"{way} {100 * worst[way]:.1f} %" for way in WAYS if way != "ours")
        goals.append(goal_of(f"energy at 1 s, {sensor}, worst", worst["ours"], ENERGY_ERROR, f" ({others})"))
    return goals


def goal_of(what: str, share: float, limit: float, beside: str = "") -> Goal:
    """Return a goal for a share that should be no more than a limit."""
    return Goal(what, f"{100 * share:.2f} %", f"at most {100 * limit:g} %{beside}", share <= limit)


def main() -> int:
    """Run, print, and return 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer phases, and only readings as in the loop")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    errors = energy_errors(40 if arguments.quick else 200)
    show_energy(errors)
    blind = {name: energy_error(name, "varying over 100 ms", JUDGED_S, "ours", 40).worst for name in BLIND_COUNTERS}
    words = ", ".join(f"{100 * worst:.2f} where that is {name}" for name, worst in blind.items())
    print(f"\nA counter that adds up a half blind power, varying over 100 ms, 1 s, worst error in %: {words}")
    covered = coverage(100 if arguments.quick else 400)
    print(
        "Whole protocol, windows of 0.25 s, half blind meter: the 95 % interval holds the truth in "
        f"{100 * covered['gross']:.1f} % (gross), {100 * covered['net']:.1f} % (net); {covered['windows']:.1f} windows"
    )
    goals = energy_goals(errors)
    routines = {"in the loop": IN_THE_LOOP} | ({} if arguments.quick else {"edgelean measure": THOROUGH})
    verdicts = {name: verdict_shares(MODELS, routine) for name, routine in routines.items()}
    for name, rows in verdicts.items():
        show_verdicts(f"{name}: {MODELS} models from 0.8 to 1.2 of the budget", rows)
        goals += [
            goal_of(f"wrong verdicts, {name}, p{row['percentile']}, {row['rule']}", row["wrong"], WRONG_VERDICTS)
            for row in rows
        ]
    goals.append(goal_of("0.1 % over the budget, called met", wrongly_met(MODELS, IN_THE_LOOP), WRONG_VERDICTS))
    print()
    for goal in goals:
        print(f"{'ok' if goal.reached else 'MISSED':7}{goal.what:54}{goal.figure:>9}   {goal.goal}")
    if arguments.json:
        figures = {"energy": [asdict(e) for e in errors], "blind_counter": blind, "coverage": covered}
        figures |= {"verdicts": verdicts, "goals": [asdict(goal) for goal in goals]}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if all(goal.reached for goal in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
