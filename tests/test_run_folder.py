"""The folder of a run: one process at a time, events that are whole, and failures in words."""

from __future__ import annotations

import errno
import json
import os
import signal
import tempfile
import time
from pathlib import Path

import pytest
from faults import context
from hypothesis import given
from hypothesis import strategies as st

from edgelean import job, pipeline
from edgelean.errors import InputError, MissingError
from edgelean.report import write_html
from edgelean.training import durable
from edgelean.training.durable import write_whole
from edgelean.training.lock import Lock
from edgelean.training.run import Run


@pytest.fixture
def folder(tmp_path):
    """A run with some events, and nobody at work on it."""
    run = Run.create(tmp_path / "run", {"recipe": "digits"})
    for step in range(4):
        run.record("reading", step, latency_ms=1.5)
    run.close()
    return tmp_path / "run"


def hold(folder, connection):
    run = Run.reopen(folder)
    connection.send("held")
    connection.recv()
    run.close()


@pytest.fixture
def holder(folder):
    """A process that works on the run."""
    ours, theirs = context().Pipe()
    process = context().Process(target=hold, args=(folder, theirs))
    process.start()
    assert ours.recv() == "held"
    yield process
    process.kill()
    process.join()


def test_a_second_process_on_a_run_is_refused_and_told_which_one_is_at_work(folder, holder):
    for attempt in (lambda: pipeline.resume(folder), lambda: Run.create(folder, {})):
        with pytest.raises(InputError, match=f"is in use by process {holder.pid} on .*: wait until that is done"):
            attempt()
    assert len(Run.open(folder).events()) == 4  # to read is allowed


def test_the_lock_of_a_process_that_was_killed_is_free_at_once(folder, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    Run.reopen(folder).close()


def test_a_folder_whose_lock_was_left_behind_before_anything_else_can_be_used(tmp_path):
    Lock(tmp_path).release()
    Run.create(tmp_path, {"seed": 1}).close()
    assert Run.open(tmp_path).asked() == {"seed": 1}


def test_a_run_that_could_not_begin_gives_its_lock_back(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(durable.Path, "write_text", failing(errno.ENOSPC))
        with pytest.raises(InputError, match=r"run.json cannot be written: No space left on device; make room"):
            Run.create(tmp_path / "run", {})
    Run.create(tmp_path / "run", {}).close()


def failing(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


def as_nobody(folder, connection):
    """Try to use a folder without the rights to; root has all rights."""
    if os.getuid() == 0:
        os.setuid(65534)
    for attempt in (lambda: Run.create(folder / "new", {}), lambda: Run.create(folder, {}), lambda: Run.reopen(folder)):
        try:
            attempt()
        except InputError as error:
            connection.send(str(error))
        else:
            connection.send("done")


def test_a_folder_that_may_not_be_written_is_refused_in_words():
    ours, theirs = context().Pipe()
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "run.json").write_text("{}")
        Path(place).chmod(0o555)
        process = context().Process(target=as_nobody, args=(Path(place), theirs))
        process.start()
        process.join()
        told = [ours.recv() for _ in range(3)]
        assert sorted(path.name for path in Path(place).iterdir()) == ["run.json"]
        Path(place).chmod(0o755)
    assert told[0] == f"{place}/new cannot be written: Permission denied; make it writable"
    assert "is not empty" in told[1]
    assert told[2] == f"{place}/run.lock cannot be written: Permission denied; make it writable"


@given(kept=st.integers(0, 400))
def test_wherever_the_events_break_off_the_run_goes_on_with_whole_lines(tmp_path_factory, kept):
    folder = tmp_path_factory.mktemp("events")
    run = Run.create(folder / "run", {})
    for step in range(5):
        run.record("reading", step, latency_ms=1.5)
    path = folder / "run" / "events.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:kept])
    run.go_on(2)
    run.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[-1]["event"] == "resume"
    assert [line["step"] for line in lines[:-1]] == list(range(len(lines) - 1))
    assert len(lines) - 1 - whole[:kept].count(b"\n") in (0, 1)  # a line that lacks nothing but its end is whole
    counted = [event["step"] for event in run.events() if event["event"] == "reading"]
    assert counted == [step for step in range(len(lines) - 1) if step <= 2]


def test_bytes_that_are_no_text_are_passed_over(folder):
    with (folder / "events.jsonl").open("ab") as file:
        file.write(b"\x00\xff\xfe\x00\n[1]\n17\n{}\n")
    run = Run.reopen(folder)
    run.go_on(9)
    run.close()
    assert [event["event"] for event in run.events()] == ["reading"] * 4 + ["resume"]


def test_an_event_that_finds_no_space_leaves_the_file_as_it_was(folder):
    from test_checkpoint import files_up_to

    run = Run.reopen(folder)
    before = (folder / "events.jsonl").read_bytes()
    with files_up_to(len(before) + 10), pytest.raises(InputError, match=r"events.jsonl cannot be written: File too"):
        run.record("reading", 4, latency_ms=1.5)
    assert (folder / "events.jsonl").read_bytes() == before
    run.record("reading", 5, latency_ms=1.5)
    run.close()
    assert [event["step"] for event in run.events()] == [0, 1, 2, 3, 5]


@pytest.mark.parametrize("place", ["write_text", "replace"])
def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch, place):
    path = tmp_path / "report.json"
    write_whole(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(durable.Path, place, failing(errno.ENOSPC))
        with pytest.raises(InputError, match=r"report.json cannot be written: No space left on device; make room"):
            write_whole(path, "new")
    assert (path.read_text(), [each.name for each in tmp_path.iterdir()]) == ("old", ["report.json"])


def test_a_disk_that_fills_under_the_report_is_told_with_its_file(tmp_path):
    from sample_report import sample_report
    from test_checkpoint import files_up_to

    with files_up_to(1000), pytest.raises(InputError, match=r"report.html cannot be written: File too large"):
        write_html(sample_report(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_clock_that_is_set_changes_no_duration_and_no_order(tmp_path, monkeypatch):
    jumps = iter([0, 1e6, -1e6, 3600, -7200] * 10)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    run = Run.create(tmp_path / "run", {})
    for step in range(5):
        run.record("reading", step)
    run.go_on(2)
    for step in range(3, 6):
        run.record("reading", step)
    run.close()
    times_s = [json.loads(line)["time_s"] for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert times_s == sorted(times_s)
    assert times_s[0] >= 0
    assert times_s[-1] < 3600


def test_runs_that_begin_in_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = job.ask("digits", "raspberry-pi-5")
    folders = []
    for _ in range(3):
        folders.append(job.new_folder(asked))
        folders[-1].mkdir(parents=True)
    assert len(set(folders)) == 3


def test_the_time_of_all_parts_of_a_run_is_added(tmp_path):
    run = Run.create(tmp_path / "run", {})
    run.record("reading", 1)
    run.close()
    lines = (tmp_path / "run" / "events.jsonl").read_text().replace('"time_s": 0.', '"time_s": 500.')
    (tmp_path / "run" / "events.jsonl").write_text(lines)
    again = Run.reopen(tmp_path / "run")
    again.go_on(0)  # the reading is lost, the time that it took is not
    assert again.seconds() >= 500
    assert again.part == 1
    again.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"recipe": "dig', r"run.json is damaged \("),
        ("[]", "run.json is not what a run begins with"),
        ('{"recipe": "digits"}', r"run.json is not what this edgelean writes \(KeyError: 'settings'\)"),
    ],
)
def test_a_damaged_account_of_what_was_asked_is_named(folder, content, message):
    (folder / "run.json").write_text(content)
    with pytest.raises(InputError, match=message):
        pipeline.resume(folder)


def test_what_is_no_run_is_not_locked(tmp_path):
    with pytest.raises(MissingError, match="is not the folder of a run"):
        pipeline.resume(tmp_path)
    assert list(tmp_path.iterdir()) == []
