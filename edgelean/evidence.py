"""What the trained model says about samples: what every artifact is held against, here or where a bundle was copied."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelean.errors import InputError
from edgelean.target.agent import packed

Array = NDArray[Any]
Metric = Callable[[Array, Array], float]

MOST_CALLS = 20_000
"""Calls of a step form; where the whole test split needs more, sequences from all over it are run."""

MOST_BYTES = 8_000_000
"""What the samples in a bundle may take."""

_TOGETHER = 256
"""Sequences that go through a step form at once."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What the trained model said about a split; every artifact is held against it.

    Attributes
    ----------
    batches
        The inputs: per batch a tuple of arrays, one per input of the model. Iterated once per artifact, so it has to
        start anew each time, as a list or a loader does.
    outputs
        The trained model's outputs for all samples of ``batches`` in their order, ``[n, ...]``.
    targets
        What ``metric`` compares them with, ``[n, ...]``.
    metric
        ``metric(outputs, targets)``; higher is better.
    metric_name
        What the metric is called.
    split
        Which samples these are.
    others
        Of other splits, on which the artifact has to pass as well; the figures of a check are those of this one.
    largest
        Samples per inference of the profile: some are run as a batch of so many, too.
    """

    batches: Iterable[Sequence[Array]]
    outputs: Array
    targets: Array
    metric: Metric
    metric_name: str
    split: str = "test"
    others: tuple[Evidence, ...] = ()
    largest: int = 1

    def metric_of_model(self) -> float:
        """Return the task metric of the trained model."""
        return float(self.metric(self.outputs, self.targets))


def bounded(evidence: Evidence) -> Evidence:
    """Return the evidence on as many sequences as a step form can be run over in a short time, many at once.

    Where the test split has more, groups from its beginning to its end are taken: it may be sorted.
    """
    groups: list[list[Array]] = []
    for batch in evidence.batches:
        last = groups[-1] if groups else None
        if last is None or len(last[0]) + len(batch[0]) > _TOGETHER or last[0].shape[1:] != batch[0].shape[1:]:
            groups.append([np.asarray(array) for array in batch])
        else:
            groups[-1] = [np.concatenate(pair) for pair in zip(last, batch, strict=True)]
    ends = np.cumsum([len(group[0]) for group in groups])
    if not groups or ends[-1] != len(evidence.outputs):
        return evidence
    longest = max(group[0].shape[1] if group[0].ndim > 1 else 1 for group in groups)
    most = min(len(groups), max(1, MOST_CALLS // longest))
    chosen = np.unique(np.linspace(0, len(groups) - 1, most).round().astype(int))
    rows = np.concatenate([np.arange(ends[index] - len(groups[index][0]), ends[index]) for index in chosen])
    return replace(
        evidence,
        batches=[groups[index] for index in chosen],
        outputs=evidence.outputs[rows],
        targets=evidence.targets[rows],
    )


def write_evidence(evidence: Evidence, samples: int, path: Path) -> Path | None:
    """Write samples from all over a split to an .npz file; the same samples give the same bytes.

    Parameters
    ----------
    samples
        At most so many, and fewer where they are large; None is written for 0.
    """
    whole = len(evidence.outputs)
    columns = [np.concatenate(parts) for parts in zip(*evidence.batches, strict=True)] if samples else []
    arrays: dict[str, Array] = {f"input_{index}": column for index, column in enumerate(columns)}
    arrays |= {"outputs": evidence.outputs, "targets": evidence.targets}
    if not samples or any(len(array) != whole or array.dtype.hasobject for array in arrays.values()):
        return None
    each = sum(array[:1].nbytes for array in arrays.values())
    count = max(1, min(whole, samples, MOST_BYTES // max(each, 1)))
    rows = np.unique(np.linspace(0, whole - 1, count).round().astype(int))  # from all over it: it may be sorted
    path.write_bytes(packed({name: array[rows] for name, array in arrays.items()}))
    return path


def read_evidence(path: Path, metrics: Mapping[str, Metric], metric_name: str, largest: int) -> Evidence:
    """Return the samples of `write_evidence`; nothing is unpickled.

    Parameters
    ----------
    metrics
        By name; without the one of the check nothing is compared but the outputs.

    Raises
    ------
    InputError
        The file holds something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            inputs = sorted(name for name in file.files if name.startswith("input_"))
            columns, outputs, targets = [file[name] for name in inputs], file["outputs"], file["targets"]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise InputError(f"{path} does not hold the samples of a bundle: {error}") from None
    if not columns or len({len(array) for array in (*columns, outputs, targets)}) != 1:
        raise InputError(f"{path} does not hold the samples of a bundle: its arrays are of different lengths")
    return Evidence(
        batches=[tuple(columns)],
        outputs=outputs,
        targets=targets,
        metric=metrics.get(metric_name, lambda outputs, targets: 0.0),
        metric_name=metric_name if metric_name in metrics else "",
        split="shipped",
        largest=largest,
    )
