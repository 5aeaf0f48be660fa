"""Put together what a run has to tell."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import edgelean
from edgelean.chapters import FULL_SIZE, LEAN, Twin
from edgelean.delivery import Delivery
from edgelean.job import About
from edgelean.loop import ClosedLoop
from edgelean.profile import Profile
from edgelean.reading import Reading
from edgelean.report import write_report
from edgelean.report.axes import LayerWidth, Spectrum
from edgelean.report.decisions import decisions
from edgelean.report.front import front, nearest, seen
from edgelean.report.history import Spent, evolutions, extrapolated, from_events, spent_on
from edgelean.report.model import EpochPoint, LawCost, Report, Side
from edgelean.spectra import rows
from edgelean.stopwatch import LAW, Stopwatch
from edgelean.training.run import Run

PACKAGES = ("torch", "onnx", "onnxruntime", "numpy")

REFERENCES = (
    "M. Chahine, P. Nazari, D. Rus, T. K. Rusch: The Curious Case of In-Training Compression of State Space Models, "
    "ICLR 2026.",
    "K. J. Aström, B. Wittenmark: Adaptive Control (self-tuning regulators), 1995.",
    "M. Shen et al.: Structural Pruning via Latency-Saliency Knapsack (HALP), NeurIPS 2022.",
    "L. Theis et al.: Faster gaze prediction with dense networks and Fisher pruning, 2018.",
    "S. Lall, J. E. Marsden, S. Glavaski: Empirical model reduction of controlled nonlinear systems, IFAC 1999.",
    "S. Williams, A. Waterman, D. Patterson: Roofline: an insightful visual performance model, CACM 2009.",
)
BALANCING = (
    "B. C. Moore: Principal component analysis in linear systems (balanced truncation), IEEE TAC 1981.",
    "A. Orvieto et al.: Resurrecting Recurrent Neural Networks for Long Sequences (LRU), ICML 2023.",
)


@dataclass(frozen=True)
class Materials:
    """What the stages of a run left behind.

    Attributes
    ----------
    accuracy
        The metric of the lean model on the test split.
    twin
        The trained full-size model; None where the recipe does not compare.
    """

    about: About
    accuracy: float
    loop: ClosedLoop
    twin: Twin | None
    delivery: Delivery
    run: Run
    stopwatch: Stopwatch


def conclude(made: Materials) -> Report:
    """Write the report of a run into its folder, record its verdicts, and return it."""
    report = assemble(made)
    write_report(report, made.run.folder)
    for verdict in report.verdicts:
        made.run.record("verdict", made.about.steps, **vars(verdict))
    made.run.record("end", made.about.steps, exit_code=report.exit_code, seconds=report.seconds)
    return report


def assemble(made: Materials) -> Report:
    """Return the report of a run."""
    events = made.run.events()
    history = from_events(events)
    axes = made.loop.bench.anatomy.axes
    start = next(event for event in events if event["event"] == "start")
    full = start["full_size"]["axes"].items()
    widths = tuple(LayerWidth(name, size, axes[name].size if name in axes else 0) for name, size in full)
    states = any(axis.kind == "states" for axis in axes.values())
    about, delivery = made.about, made.delivery
    return Report(
        edgelean_version=edgelean.__version__,
        recipe=about.name,
        profile=about.profile.name,
        board=about.board.title,
        target=made.loop.bench.target.name,
        seed=about.seed,
        epochs=about.epochs,
        steps=about.steps,
        started=about.started,
        seconds=made.run.seconds(),
        exit_code=_exit_code(delivery),
        verdicts=delivery.verdicts,
        checks=delivery.checks,
        full_size=_full_size(made, events, start["full_size"]),
        lean=_lean(made, events),
        metric_name=about.metric_name,
        epochs_history=history.epochs,
        full_size_history=_twins_history(events),
        readings=history.readings,
        cuts=history.cuts,
        layers=widths,
        spectra=tuple(_spectra(made.loop, {width.name: width.after for width in widths})),
        evolutions=evolutions(events, rows),
        timing=_timing(made),
        engine=delivery.engine,
        bundle=delivery.bundle,
        notes=_notes(delivery.reading),
        caveats=tuple(dict.fromkeys((*made.loop.bench.notes, *history.notes, *_choices(events), *delivery.notes))),
        environment=_environment(delivery.reading),
        refused=_refused(made.loop),
        references=REFERENCES + (BALANCING if states else ()),
        training_energy_method=spent_on(events, LEAN).method,
        electricity=about.profile.electricity.words,
        commands=_commands(delivery),
        form=delivery.form,
        forms=delivery.forms,
        **_reasons(made, events),
        law=_law(made.stopwatch, spent_on(events, LEAN)),
    )


def _reasons(made: Materials, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return why what was cut, which trade-offs were seen, and what was feasible where a budget was not met."""
    points, missed = seen(events), any(verdict.outcome == "not met" for verdict in made.delivery.verdicts)
    asked = made.loop.limits, made.about.profile.tolerance, made.about.metric_name
    return {
        "decisions": decisions(events),
        "front": front(points),
        "nearest": nearest(points, *asked) if missed else (),
    }


def _timing(made: Materials) -> dict[str, float]:
    """Return the seconds per phase; those that no checkpoint knows of were lost when the run was interrupted."""
    known = made.stopwatch.seconds()
    lost_s = made.run.seconds() - sum(known.values())
    return known | {"lost to interruptions": lost_s} if made.run.part and lost_s > 0 else known


def _choices(events: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    """Return when and why a precision was chosen, where the profile leaves that to the run."""
    return (f"At step {event['step']} {event['text']}." for event in events if event["event"] == "precision")


def _law(stopwatch: Stopwatch, spent: Spent) -> LawCost | None:
    seconds = stopwatch.seconds().get(LAW, 0.0)
    return LawCost(seconds, seconds / spent.seconds) if seconds > 0 and spent.seconds > 0 else None


def _commands(delivery: Delivery) -> tuple[str, ...]:
    stream = ("python run_onnx.py --stream FILE.npy",) if delivery.forms else ()
    return "cd bundle", "python run_onnx.py INPUT.npy", "python run_onnx.py INPUT.npy --benchmark", *stream


def _exit_code(delivery: Delivery) -> int:
    if any(not check.passed for check in delivery.checks):
        return 4
    return 3 if any(verdict.outcome != "met" for verdict in delivery.verdicts) else 0


def _refused(loop: ClosedLoop) -> tuple[tuple[str, str], ...]:
    """Return what was left alone, and why: before the training, or once its cut had broken the law."""
    found = ((refusal.what, refusal.why) for refusal in loop.bench.anatomy.refused)
    return (*found, *loop.progress.banned.items())


def _lean(made: Materials, events: Sequence[Mapping[str, Any]]) -> Side:
    spent = spent_on(events, LEAN)
    reading, bench = made.delivery.reading, made.loop.bench
    return Side(
        accuracy=made.accuracy,
        accuracy_note="",
        **_costs(reading),
        parameters=bench.parameters(),
        macs=bench.macs(),
        training_s=spent.seconds,
        training_note="cuts and readings included",
        **_energies(spent, made.about.profile),
    )


def _full_size(made: Materials, events: Sequence[Mapping[str, Any]], start: Mapping[str, Any]) -> Side:
    if made.twin is not None:
        accuracy, note = made.twin.metric, "after the same training"
        spent: Spent | None = spent_on(events, FULL_SIZE)
        training_note = "the same epochs, nothing cut"
    else:
        accuracy, note = None, "not trained: --set compare=true trains it as well"
        spent = extrapolated(events, LEAN, made.about.steps)
        training_note = "estimated from the steps before the first cut" if spent is not None else "not known"
    return Side(
        accuracy=accuracy,
        accuracy_note=note,
        **_costs(made.loop.full_size),
        parameters=start["parameters"],
        macs=start["macs"],
        training_s=None if spent is None else spent.seconds,
        training_note=training_note,
        **_energies(spent, made.about.profile),
    )


def _costs(reading: Reading) -> dict[str, Any]:
    return {
        "latency_ms": reading.latency.value,
        "energy_mj": reading.energy.value if reading.energy else None,
        "provenance": reading.latency.provenance,
        "energy_provenance": reading.energy.provenance if reading.energy else None,
        "memory_bytes": reading.memory.value if reading.memory else None,
        "artifact_bytes": round(reading.size.value) if reading.size else None,
    }


def _energies(spent: Spent | None, profile: Profile) -> dict[str, Any]:
    kwh = None if spent is None else spent.kwh
    return {
        "training_kwh": kwh,
        "training_co2_g": None if kwh is None else kwh * profile.electricity.g_per_kwh,
        "training_parts": () if spent is None else spent.parts,
    }


def _twins_history(events: Iterable[Mapping[str, Any]]) -> tuple[EpochPoint, ...]:
    told = {event["epoch"]: event for event in events if event["event"] == "full_size_epoch"}
    return tuple(EpochPoint(e["epoch"], e["step"], e["loss"], e["metric"]) for e in told.values())


def _spectra(loop: ClosedLoop, final: Mapping[str, int]) -> Iterable[Spectrum]:
    for name, scores in loop.progress.spectra.items():
        kind = "states" if name.endswith(".states") else "channels"  # the axis may have gone with its block
        # The real map of N complex states has 2 N singular values.
        kept = 2 * final[name] if kind == "states" else final[name]
        unit = "Hankel singular value" if kind == "states" else "price of the unit in nats"
        if scores:
            yield Spectrum(name, kind, scores, kept, unit)


def _notes(reading: Reading) -> tuple[str, ...]:
    figures = (reading.latency, *((reading.energy,) if reading.energy else ()))
    noise = (f"the machine was too noisy for a verdict: {reading.noise}",) if reading.noise else ()
    return tuple(dict.fromkeys((*(figure.method for figure in figures), *noise)))


def _environment(reading: Reading) -> dict[str, str]:
    packages = {name: version(name) for name in PACKAGES}
    return {"edgelean": edgelean.__version__, "python": platform.python_version(), **packages, **reading.conditions}
