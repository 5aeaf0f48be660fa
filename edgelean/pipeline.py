"""The whole flow: recipe and profile in, verified bundle and report out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from edgelean.assemble import Materials, conclude
from edgelean.bench import Bench
from edgelean.chapters import CHECKPOINTS, LEAN, begin, found_in, resumable, take_up, train_full_size, train_lean
from edgelean.delivery import deliver, evidence_of
from edgelean.errors import InputError
from edgelean.exporter.targets import load_target
from edgelean.job import Job, ask, asked_before, new_folder
from edgelean.label import label_of
from edgelean.loop import ClosedLoop
from edgelean.lowering import samples_of
from edgelean.profile import Profile
from edgelean.recipe import Recipe
from edgelean.report.model import Report
from edgelean.resume import full_size_of
from edgelean.shrink.bypass import Detour, take_out
from edgelean.shrink.cut import restore
from edgelean.stopwatch import Stopwatch
from edgelean.surroundings import Surroundings
from edgelean.target import open_target
from edgelean.training.checkpoint import Found, load_newest
from edgelean.training.run import OnEvent, Run
from edgelean.training.trainer import BEGINNING, Session, evaluate, mean_loss, prepare


def fit(
    recipe: str | Recipe = "digits",
    profile: str | Path | Profile = "jetson-orin",
    *,
    latency: str | None = None,
    energy: str | None = None,
    memory: str | None = None,
    size: str | None = None,
    accuracy_loss: str | None = None,
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
    latency, energy, memory, size, accuracy_loss
        Other budgets than the profile's: ``"2ms"``, ``"10mJ"``, ``"2MB"``, ``"300kB"``, or a share of the full-size
        model such as ``"50%"``; an accuracy loss in points of the metric, ``"2 points"``.
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
    budgets = {"latency": latency, "energy": energy, "memory": memory, "size": size, "accuracy_loss": accuracy_loss}
    job = ask(recipe, profile, **budgets, target=target, seed=seed, settings=settings)
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
    for name in targets:
        load_target(name)
    with closing(Run.reopen(Path(folder), on_event)) as earlier:
        job = asked_before(earlier)
        trained = max((event["epoch"] for event in earlier.events() if event["event"] == "epoch"), default=0)
        if trained < job.recipe.epochs:
            how = f"finish it with `edgelean fit --resume {folder}`"
            raise InputError(f"{folder} did not end: {how}, and then export it")
        wanted = tuple(dict.fromkeys((*job.profile.targets, *targets)))
        profile = job.profile.model_copy(update={"targets": wanted})
        return run(replace(job, profile=profile, target=target or job.target), earlier.folder, on_event, earlier)


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
    """Do a job in a folder, or the rest of it where an earlier run of it is given.

    Raises
    ------
    InputError
        If it was started by torchrun: every process would train alone, and all in one folder.
    """
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise InputError(
            f"edgelean fit trains in one process, torchrun started {processes}: start it without, or keep your own "
            "training loop with DistributedDataParallel and attach the controller to it by edgelean.attach"
        )
    stopwatch = Stopwatch()
    found = None if earlier is None else found_in(earlier)
    session = prepare(job.recipe, job.seed, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    example = next(iter(session.loaders.validation))[0].to(session.device)
    held = session.loaders.validation
    around = Surroundings(
        job.board,
        session.steps,
        lambda: evaluate(session, held),
        stopwatch,
        loss=lambda: mean_loss(session, held),
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
    loop.record, about, place = here.record, job.about(session.steps), BEGINNING
    if found is None:
        begin(here, about, loop)
        loop.record_beginning()
    else:
        place = take_up(here, job, session, loop, found)
    train_lean(session, loop, here, stopwatch, place)
    twin = train_full_size(job.recipe, job.seed, session.device, here, stopwatch) if job.recipe.compare else None
    evidence, label = evidence_of(session), label_of(job, here.events())
    known, out = None if twin is None else twin.metric, here.folder / "bundle"
    delivery = deliver(loop, evidence, samples_of(session), label, out, stopwatch, known)
    return conclude(Materials(about, evidence.metric_of_model(), loop, twin, delivery, here, stopwatch))
