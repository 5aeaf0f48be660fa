"""The whole flow: recipe and profile in, verified bundle and report out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import torch
from torch import nn

from edgelean.assemble import Materials, assemble
from edgelean.bench import Bench
from edgelean.chapters import CHECKPOINTS, LEAN, begin, found_in, resumable, take_up, train_full_size, train_lean
from edgelean.delivery import Label, deliver, evidence_of
from edgelean.job import Job, ask, asked_before, new_folder
from edgelean.loop import ClosedLoop
from edgelean.profile import Profile
from edgelean.recipe import Recipe
from edgelean.report import write_report
from edgelean.report.model import Report
from edgelean.resume import full_size_of
from edgelean.shrink.bypass import Detour, take_out
from edgelean.shrink.cut import restore
from edgelean.stopwatch import Stopwatch
from edgelean.surroundings import Surroundings
from edgelean.target import open_target
from edgelean.training.checkpoint import Found, load_newest
from edgelean.training.run import OnEvent, Run
from edgelean.training.trainer import Session, evaluate, prepare


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


def resume(folder: str | Path, *, recipe: Recipe | None = None, on_event: OnEvent | None = None) -> Report:
    """Go on with an interrupted run, to the same model as if nothing had happened.

    Parameters
    ----------
    recipe
        The one of the run, where that was a Python object and no name or file.

    Raises
    ------
    MissingError, InputError
        If it is not the folder of a run, another process works on it, what was asked cannot be read any more or is not
        what the checkpoints are of, or no checkpoint is whole.
    """
    with closing(Run.reopen(Path(folder), on_event)) as earlier:
        return run(asked_before(earlier, recipe), earlier.folder, on_event, earlier)


def load(folder: str | Path) -> nn.Module:
    """Return the lean model of a run, as it was at its last checkpoint, ready to infer on the CPU.

    Raises
    ------
    MissingError, InputError
        If it is not the folder of a run, its recipe was a Python object, or the last checkpoint is damaged.
    """
    job = asked_before(Run.open(Path(folder)))
    model = job.recipe.model()
    checkpoint = load_newest(Path(folder) / CHECKPOINTS / LEAN)
    take_out(model, (Detour(**detour) for detour in checkpoint.values["detours"]))
    restore(model, checkpoint.part("model/"), checkpoint.values["numbers"])
    return model.eval()


def run(job: Job, folder: Path, on_event: OnEvent | None = None, earlier: Run | None = None) -> Report:
    """Do a job in a folder, or the rest of it where an earlier run of it is given."""
    stopwatch = Stopwatch()
    found = None if earlier is None else found_in(earlier)
    session = prepare(job.recipe, job.seed, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    example = next(iter(session.loaders.validation))[0].to(session.device)
    around = Surroundings(
        job.board,
        session.steps,
        lambda: evaluate(session, session.loaders.validation),
        stopwatch,
        full_size=None if found is None else full_size_of(found.checkpoint),
    )
    with closing(open_target(job.target, job.profile, job.board)) as target:
        bench = Bench(session.model, (example,), job.profile, target, stopwatch, job.recipe.protect)
        if found is not None:
            bench.read()  # the figures are known; what else the bench learns from the full-size model is not
        loop = ClosedLoop(bench, session.optimizer, around)
        # Whatever can be wrong with the input has been found by now: from here on there is a folder.
        with closing(earlier or Run.create(folder, job.asked, on_event)) as here, resumable(here):
            return _worked_through(job, session, loop, here, found, stopwatch)


def _worked_through(
    job: Job, session: Session, loop: ClosedLoop, here: Run, found: Found | None, stopwatch: Stopwatch
) -> Report:
    """Go through the stages that leave something in the folder, each from where an earlier run had come to."""
    loop.record = here.record
    place = begin(here, job, session, loop) if found is None else take_up(here, job, session, loop, found)
    train_lean(session, loop, here, stopwatch, place)
    twin = train_full_size(job.recipe, job.seed, session.device, here, stopwatch) if job.recipe.compare else None
    label = Label(f"{job.recipe.name} for {job.profile.name}", job.recipe.labels)
    delivery = deliver(loop, evidence_of(session), label, here.folder / "bundle", stopwatch)
    report = assemble(Materials(job, session, loop, twin, delivery, here, stopwatch))
    write_report(report, here.folder)
    for verdict in report.verdicts:
        here.record("verdict", session.steps, **vars(verdict))
    here.record("end", session.steps, exit_code=report.exit_code, seconds=report.seconds)
    return report
