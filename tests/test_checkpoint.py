"""Checkpoints: what is damaged is never loaded, and what failed leaves the ones before alone."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import chance_recipe
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from torch.utils.data import DataLoader

from edgelean.errors import InputError
from edgelean.resume import pack, unpack
from edgelean.training import checkpoint, keeper, randomness
from edgelean.training.checkpoint import Checkpoint, find_newest, load_newest, save
from edgelean.training.keeper import EVERY_S, SHARE, Keeper, name_of
from edgelean.training.trainer import BEGINNING, Place, prepare, train

FILES = ("tensors.safetensors", "values.json")


def numbered(number):
    return Checkpoint({"a/weight": torch.full((3, 4), float(number)), "b": torch.tensor(number)}, {"step": number})


@contextmanager
def files_up_to(most_bytes):
    """Let the system refuse to write more than so much into a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two checkpoints."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for number in (1, 2):
        save(folder, f"{number:06}", numbered(number))
    return folder


@given(
    file=st.sampled_from(FILES), place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255), cut=st.booleans()
)
def test_what_is_loaded_is_what_was_saved_whatever_byte_is_changed_or_missing(two, file, place, flip, cut):
    path = two / "000002" / file
    content = path.read_bytes()
    at = int(place * len(content))
    changed = content[:at] if cut else content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :]
    path.write_bytes(changed)
    try:
        found = find_newest(two).checkpoint
    finally:
        path.write_bytes(content)
    step = found.values["step"]
    assert step in (1, 2)  # white space may be changed without harm
    assert found.values == numbered(step).values
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in numbered(step).tensors.items())


def test_values_that_were_changed_are_found_out_also_where_they_can_be_read(two, tmp_path):
    folder = Path(shutil.copytree(two, tmp_path / "copy"))
    values = folder / "000002" / "values.json"
    values.write_text(values.read_text().replace('"step": 2', '"step": 3'))
    found = find_newest(folder)
    assert (found.path.name, [path.name for path in found.damaged]) == ("000001", ["000002"])


@pytest.mark.parametrize("file", FILES)
def test_a_checkpoint_with_a_missing_file_is_passed_over(two, tmp_path, file):
    folder = Path(shutil.copytree(two, tmp_path / "copy"))
    (folder / "000002" / file).unlink()
    assert find_newest(folder).checkpoint.values == {"step": 1}
    with pytest.raises(InputError, match="has a damaged checkpoint, 000002: resume the run first"):
        load_newest(folder)
    (folder / "000001" / file).unlink()
    with pytest.raises(InputError, match="000002, 000001 are not as they were written; start the run anew"):
        find_newest(folder)


def test_a_training_that_never_came_to_a_checkpoint_has_none(tmp_path):
    assert find_newest(tmp_path / "nothing") is None
    (tmp_path / "000001.part").mkdir()
    assert find_newest(tmp_path) is None


@pytest.mark.parametrize("most_bytes", [0, 60, 150])
def test_a_disk_that_takes_no_more_leaves_the_checkpoints_before_and_no_litter(two, tmp_path, most_bytes):
    folder = Path(shutil.copytree(two, tmp_path / "copy"))
    with files_up_to(most_bytes), pytest.raises(InputError, match=r"000003 cannot be written: File too large; raise"):
        save(folder, "000003", numbered(3))
    assert sorted(path.name for path in folder.iterdir()) == ["000001", "000002"]
    assert load_newest(folder).values == {"step": 2}


def test_a_full_disk_under_the_tensors_is_told_as_one(two, tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(InputError, match="No space left on device; make room"):
        save(tmp_path, "000001", numbered(1))


@pytest.mark.parametrize("place", ["mkdir", "write_text", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_whatever_write_fails_the_checkpoints_before_stay(two, tmp_path, monkeypatch, place, number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    folder = Path(shutil.copytree(two, tmp_path / "copy"))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Path, place, fail)
        with pytest.raises(InputError, match=f"000003 cannot be written: {os.strerror(number)}; make"):
            save(folder, "000003", numbered(3))
    assert load_newest(folder).values == {"step": 2}


def test_tensors_that_share_memory_are_kept_as_they_are(tmp_path):
    whole = torch.arange(6.0)
    save(tmp_path, "000001", Checkpoint({"whole": whole, "again": whole, "part": whole[2:4]}, {}))
    found = load_newest(tmp_path).tensors
    assert torch.equal(found["again"], whole)
    assert torch.equal(found["part"], torch.tensor([2.0, 3.0]))


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


def test_long_epochs_have_checkpoints_within_them_and_short_ones_only_at_their_end(tmp_path):
    clock = Clock()
    keep = Keeper(tmp_path, lambda place: numbered(place.step), lambda: None, clock)
    kept = []
    for step in range(1, 101):
        clock.now_s += EVERY_S / 4.5
        keep(Place(step, *divmod(step, 50)))
        kept += [path.name for path in tmp_path.iterdir() if path.name not in kept]
    assert {"000001", "000002"} <= set(kept)
    assert len(kept) == 2 + 2 * 9  # every fifth step
    assert sorted(kept) == kept
    short = tmp_path / "short"
    keep = Keeper(short, lambda place: numbered(place.step), lambda: None, Clock())
    for step in range(1, 101):
        keep(Place(step, *divmod(step, 50)))
    assert sorted(path.name for path in short.iterdir()) == ["000001", "000002"]


def test_expensive_checkpoints_are_written_less_often(tmp_path):
    clock, taken_s = Clock(), []

    def expensive(place):
        taken_s.append(clock.now_s)
        clock.now_s += 2 * SHARE * EVERY_S
        return numbered(place.step)

    keep = Keeper(tmp_path, expensive, lambda: None, clock)
    for step in range(1, 1000):
        clock.now_s += 1.0
        keep(Place(step, 0, step))
    assert len(taken_s) == 2
    assert taken_s[1] - taken_s[0] >= 2 * EVERY_S


def test_the_last_checkpoint_that_is_on_the_disk_for_sure_stays_until_the_next_one_is(tmp_path, monkeypatch):
    clock, flushed = Clock(), []

    def slow_disk(path):
        flushed.append(path)
        clock.now_s += 1.0

    monkeypatch.setattr("edgelean.training.keeper.flush", slow_disk)
    keep = Keeper(tmp_path, lambda place: numbered(place.step), lambda: None, clock)
    for epoch in range(1, 301):
        keep(Place(epoch, epoch))
        clock.now_s += 1.0
        assert flushed[-1].is_dir()
        assert len(list(tmp_path.iterdir())) <= 3
    assert 3 <= len(flushed) <= 1 + 300 * SHARE


def test_names_of_checkpoints_sort_as_they_come():
    places = [Place(0), Place(1, 0, 1), Place(9, 0, 9), Place(10, 0, 10), Place(50, 1), Place(51, 1, 1), Place(500, 10)]
    names = [name_of(place) for place in places]
    assert sorted(names) == names


def drawn():
    generator = np.random.mtrand._rand  # what np.random.normal and its like draw from
    return torch.rand(3).tolist(), random.gauss(0, 1), generator.standard_normal(3).tolist()


@given(seed=st.integers(0, 2**40), before=st.integers(0, 5))
def test_random_numbers_go_on_where_they_were(tmp_path_factory, seed, before):
    randomness.seed(seed)
    for _ in range(before):
        drawn()
    tensors, values = randomness.states()
    folder = tmp_path_factory.mktemp("random")
    save(folder, "000001", Checkpoint(tensors, values))
    wanted = drawn()
    found = load_newest(folder)
    randomness.put_back(found.tensors, found.values)
    assert drawn() == wanted


class StoppedError(Exception):
    """The training ends here."""


def trained(folder, stop_at=None, workers=0):
    """Train from the newest checkpoint to the end, or to a step; return the weights and the losses of the epochs."""
    made = chance_recipe.data()
    loader = DataLoader(made[0].dataset, 16, shuffle=True, num_workers=workers, generator=torch.Generator())
    recipe = replace(chance_recipe.recipe, data=lambda: (loader, *made[1:]), epochs=2)
    session, losses = prepare(recipe, 3, torch.device("cpu")), []
    keep = Keeper(folder, lambda place: pack(session, place), lambda: None)

    def stop(step, loss):
        if step == stop_at:
            raise StoppedError

    found = find_newest(folder)
    place = BEGINNING if found is None else unpack(found.checkpoint, session).place
    train(session, stop, lambda epoch, step, loss, metric: losses.append((epoch, step, loss, metric)), keep, place)
    return session.model.state_dict(), losses


@pytest.fixture
def at_every_step(monkeypatch):
    monkeypatch.setattr(keeper, "EVERY_S", 0.0)
    monkeypatch.setattr(keeper, "SHARE", float("inf"))
    monkeypatch.setattr(keeper, "flush", lambda path: None)


@pytest.mark.parametrize(("steps", "workers"), [((2,), 0), ((6,), 0), ((7,), 0), ((3, 5, 9, 11), 0), ((8,), 2)])
def test_a_training_that_is_stopped_at_any_step_ends_with_the_same_weights(tmp_path, at_every_step, workers, steps):
    weights, losses = trained(tmp_path / "whole", workers=workers)
    for step in steps:
        with pytest.raises(StoppedError):
            trained(tmp_path / "parts", step, workers)
    found, rest = trained(tmp_path / "parts", workers=workers)
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert rest == losses[-len(rest) :]
