"""The whole flow: recipe and profile in, verified bundle and report out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from edgelean.assemble import Materials, assemble
from edgelean.bench import Bench
from edgelean.chapters import LEAN, begin, train_full_size, train_lean
from edgelean.delivery import deliver, evidence_of
from edgelean.errors import InputError
from edgelean.exporter.targets import load_target
from edgelean.job import Job, ask, asked_before, new_folder
from edgelean.label import label_of
from edgelean.loop import ClosedLoop
from edgelean.profile import Profile
from edgelean.recipe import Recipe
from edgelean.report import write_report
from edgelean.report.model import Report
from edgelean.shrink.bypass import Detour, take_out
from edgelean.shrink.cut import restore
from edgelean.stopwatch import Stopwatch
from edgelean.surroundings import Surroundings
from edgelean.target import open_target
from edgelean.training.checkpoint import load_newest
from edgelean.training.run import OnEvent, Run
from edgelean.training.trainer import evaluate, prepare


def fit(
    recipe: str | Recipe = "digits",
    profile: str | Path | Profile = "jetson-orin",
    *,
    latency: str | None = None,
    energy: str | None = None,
    target: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    settings: Mapping[str, str] | None = None,
    on_event: OnEvent | None = None,
) -> Report:
    """Train a model and make it smaller while it learns, until it is within the budgets of a profile.

    Parameters
    ----------
    recipe
        A built-in name, a Python file, an importable ``module:name``, or a `Recipe`.
    profile
        A name on the shelf, a TOML file, or a `Profile`.
    latency, energy
        Other budgets than the profile's: ``"2ms"``, ``"10mJ"``, or a share of the full-size model such as ``"50%"``.
    target
        ``"local"``, ``"modelled"`` or ``"ssh://[user@]host"``; left out: local where the board is this machine, else
        modelled.
    out
        The run's folder, new or empty; left out: a new one under ``runs/``.
    settings
        Hyper-parameters of the recipe, or knobs in ``[control]`` of the profile, to replace, as ``--set`` does.
    on_event
        Called with every event as it happens.

    Returns
    -------
    Report
        Also written into the run's folder, as report.json and report.html.
    """
    job = ask(recipe, profile, latency=latency, energy=energy, target=target, seed=seed, settings=settings)
    return run(job, Path(out) if out is not None else new_folder(job), on_event)


def resume(folder: str | Path, *, on_event: OnEvent | None = None) -> Report:
    """Go on with an interrupted run, to the same model as if nothing had happened."""
    earlier = Run.open(Path(folder), on_event)
    return run(asked_before(earlier), earlier.folder, on_event, earlier)


def export(
    folder: str | Path, targets: Sequence[str], *, target: str | None = None, on_event: OnEvent | None = None
) -> Report:
    """Export the lean model of a run that ended once more, into further formats, and verify and judge the files.

    Parameters
    ----------
    targets
        Names on the shelf ``export/targets``, or TOML files, beside those of the profile of the run.
    target
        Where the budgets are judged: ``"local"``, ``"modelled"`` or ``"ssh://[user@]host"``; left out: as in the run.

    Returns
    -------
    Report
        Written into the run's folder, as the bundle is.

    Raises
    ------
    MissingError
        There is no such run, or no such export target.
    InputError
        The run did not end.
    """
    earlier = Run.open(Path(folder), on_event)
    job = asked_before(earlier)
    for name in targets:
        load_target(name)
    trained = max((event["epoch"] for event in earlier.events() if event["event"] == "epoch"), default=0)
    if trained < job.recipe.epochs:
        raise InputError(f"{folder} did not end: finish it with `edgelean fit --resume {folder}`, and then export it")
    wanted = tuple(dict.fromkeys((*job.profile.targets, *targets)))
    profile = job.profile.model_copy(update={"targets": wanted})
    return run(replace(job, profile=profile, target=target or job.target), earlier.folder, on_event, earlier)


def load(folder: str | Path) -> nn.Module:
    """Return the lean model of a run, as it was after its last epoch, ready to infer on the CPU."""
    job = asked_before(Run.open(Path(folder)))
    model = job.recipe.model()
    checkpoint = load_newest(Path(folder) / "checkpoints" / LEAN)
    take_out(model, (Detour(**detour) for detour in checkpoint.values["detours"]))
    restore(model, checkpoint.part("model/"), checkpoint.values["numbers"])
    return model.eval()


def run(job: Job, folder: Path, on_event: OnEvent | None = None, earlier: Run | None = None) -> Report:
    """Do a job in a folder, or the rest of it where an earlier run of it is given."""
    stopwatch = Stopwatch()
    session = prepare(job.recipe, job.seed, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    example = next(iter(session.loaders.validation))[0].to(session.device)
    around = Surroundings(job.board, session.steps, lambda: evaluate(session, session.loaders.validation), stopwatch)
    with closing(open_target(job.target, job.profile, job.board)) as target:
        bench = Bench(session.model, (example,), job.profile, target, stopwatch, job.recipe.protect)
        loop = ClosedLoop(bench, session.optimizer, around)
        # Whatever can be wrong with the input has been found by now: from here on there is a folder.
        here = earlier or Run.create(folder, job.asked, on_event)
        if earlier is None:
            begin(here, job, session, loop)
        train_lean(session, loop, here, stopwatch)
        twin = train_full_size(job.recipe, job.seed, session.device, here, stopwatch) if job.recipe.compare else None
        delivery = deliver(loop, evidence_of(session), label_of(job, here.events()), here.folder / "bundle", stopwatch)
    report = assemble(Materials(job, session, loop, twin, delivery, here, stopwatch))
    write_report(report, here.folder)
    for verdict in report.verdicts:
        here.record("verdict", session.steps, **vars(verdict))
    here.record("end", session.steps, exit_code=report.exit_code, seconds=report.seconds)
    return report
