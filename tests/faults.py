"""Ways to end a run from inside, at a moment that matters, with a real signal to a real process."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from torch.utils.data._utils.fetch import _MapDatasetFetcher

import edgelean
from edgelean import bench, cli, delivery, pipeline
from edgelean.errors import DeviceError
from edgelean.exporter import bundle
from edgelean.report import html
from edgelean.target.modelled import ModelledTarget
from edgelean.training import checkpoint, keeper, trainer
from edgelean.training.run import Run

RECIPE = str(Path(__file__).parent / "chance_recipe.py")
ASKED = {
    "profile": "raspberry-pi-5",
    "latency": "100%",
    "energy": "96%",
    "settings": {"events": "2", "wait": "0.3", "compare": "true"},
}
"""One cut, at step 4 of 24; then the full-size model trains as well."""


class TrainedError(Exception):
    """The trainings are done, and the test wants no more."""


def fit(folder, **changes):
    return edgelean.fit(**{"recipe": RECIPE, "out": folder, **ASKED, **changes})


def end_of_training(*_):
    raise TrainedError


def remember_exports(memo, put=setattr):
    """Export the same once, in all processes: exporting takes most of the time, and fails in tests of its own.

    The same is a structure, where its cost is asked for, and a structure with its weights, where it is delivered.
    """
    export = bench.export_onnx

    def remembered(key):
        def exported(model, example, path, **rest):
            known = memo / hashlib.sha256(key(model)).hexdigest()
            if not known.exists():
                shutil.copyfile(export(model, example, path, **rest), known.with_suffix(".part"))
                known.with_suffix(".part").rename(known)
            return Path(shutil.copyfile(known, path))

        return exported

    put(bench, "export_onnx", remembered(_shapes))
    put(delivery, "export_onnx", remembered(_weights))


def _shapes(model):
    return repr([(name, tuple(tensor.shape)) for name, tensor in model.state_dict().items()]).encode()


def _weights(model):
    return b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())


def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(place, name, call):
    """Let a function do its work so many times less one, and then die in its stead."""
    calls, work = [], getattr(place, name)

    def counted(*arguments, **named):
        calls.append(1)
        return die() if len(calls) == call else work(*arguments, **named)

    setattr(place, name, counted)


def half_a_checkpoint(call):
    """Write half of the tensors of a checkpoint, and die."""
    calls, write = [], checkpoint.save_file

    def half(tensors, path):
        write(tensors, path)
        calls.append(1)
        if len(calls) == call:
            os.truncate(path, path.stat().st_size // 2)
            die()

    checkpoint.save_file = half


def half_an_event(event):
    """Write half of the line of an event, and die."""
    append = Run._append

    def half(self, text):
        if f'"event": "{event}"' not in text:
            return append(self, text)
        with (self.folder / "events.jsonl").open("a") as file:
            file.write(text[: len(text) // 2])
        return die()

    Run._append = half


def at_every_step(then):
    """Write a checkpoint after every step, and more."""
    keeper.EVERY_S, keeper.SHARE = 0.0, float("inf")
    then()


MOMENTS = {
    "before the first event": lambda: die_at(pipeline, "begin", 1),
    "before the first checkpoint": lambda: die_at(keeper, "save", 1),
    "in the middle of the first checkpoint": lambda: half_a_checkpoint(1),
    "in the middle of a checkpoint": lambda: half_a_checkpoint(3),
    "before a checkpoint gets its name": lambda: die_at(checkpoint.Path, "rename", 3),
    "while a cut is recorded": lambda: half_an_event("cut"),
    "right after a cut": lambda: die_at(bench.Bench, "parameters", 3),
    "within an epoch, 13 steps done": lambda: at_every_step(lambda: die_at(trainer, "train_step", 14)),
    "while the full-size model trains": lambda: die_at(trainer, "train_step", 24 + 12),
}
"""What is done to a process that trains, so that it dies there."""

ENDS = {
    "while the bundle is written": lambda: die_at(bundle.shutil, "copyfile", 2),
    "before the bundle gets its name": lambda: die_at(bundle, "_swap", 1),
    "while the report is written": lambda: die_at(html, "render", 1),
    "before the run ends": lambda: half_an_event("end"),
}
"""The same for a process that has trained, and goes on."""


def _fit(folder, memo, moment):
    remember_exports(memo)
    MOMENTS[moment]()
    fit(folder)


def _resume(folder, memo, moment):
    remember_exports(memo)
    ENDS[moment]()
    pipeline.resume(folder)


PRELOADED = [
    *("edgelean.pipeline", "edgelean.report.html", "edgelean.recipes.digits", "codecarbon", "pandas", "networkx"),
    *("sklearn.datasets", "onnxscript", "onnxruntime", "torch.export", "torch._dynamo", "torch._export", "torch.onnx"),
    *("torch._functorch.aot_autograd", "torch._inductor.config", "torch.fx.experimental.symbolic_shapes"),
]
"""What every process would import for itself, which takes longer than the training."""


def context():
    """Return what starts processes that have imported everything."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(PRELOADED)
    return found


def killed(folder, memo, moment):
    """Fit, or finish a run that has trained, in a process of its own that dies; return how it ended."""
    process = context().Process(target=_fit if moment in MOMENTS else _resume, args=(folder, memo, moment))
    process.start()
    process.join()
    return process.exitcode


def signal_at(number, call):
    """Send a signal to this process in the middle of a step of the training."""
    calls, step = [], trainer.train_step

    def counted(*arguments):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return step(*arguments)

    trainer.train_step = counted


def failure(number):
    return OSError(number, os.strerror(number))


def fail_at(place, name, call, error, put=setattr):
    """Let a function do its work so many times less one, and then fail, and work again."""
    calls, work = [], getattr(place, name)

    def counted(*arguments, **named):
        calls.append(1)
        if len(calls) == call:
            raise error
        return work(*arguments, **named)

    put(place, name, counted)


ON_THE_WAY = {
    "nothing": lambda: None,
    "Ctrl-C": lambda: signal_at(signal.SIGINT, 13),
    "a scheduler that ends the process": lambda: signal_at(signal.SIGTERM, 13),
    "a terminal that is closed": lambda: signal_at(signal.SIGHUP, 13),
    "a target that dies": lambda: fail_at(ModelledTarget, "read", 2, DeviceError("the board does not answer any more")),
    "a disk that is full": lambda: fail_at(checkpoint, "save_file", 3, failure(errno.ENOSPC)),
    "a folder that cannot be written any more": lambda: fail_at(checkpoint.Path, "rename", 3, failure(errno.EROFS)),
    "data that cannot be read any more": lambda: fail_at(_MapDatasetFetcher, "fetch", 60, OSError("the share is gone")),
}
"""What is done to a command that trains, so that it ends early."""


def _command(arguments, memo, trouble, output):
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    remember_exports(memo)
    ON_THE_WAY[trouble]()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup
    sys.argv = ["edgelean", *arguments]
    cli.main()


def commanded(arguments, memo, trouble):
    """Run the command line in a process that meets some trouble; return its exit code and what it said."""
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "output"
        process = context().Process(target=_command, args=(arguments, memo, trouble, output))
        process.start()
        process.join()
        return process.exitcode, output.read_text()
