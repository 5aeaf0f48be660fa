"""The agent that is copied to a board, run as a program: what it answers, what it keeps, and how it ends."""

import ast
import contextlib
import fcntl
import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from types import SimpleNamespace

import agent_program
import numpy as np
import pytest
import small_onnx
from agent_program import FOLDER, PARTS, PATIENCE, Board, fake_vcgencmd, measurement, sha

from edgelean.target.agent import pack_agent, packed


@pytest.fixture(scope="module")
def parts():
    with agent_program.modules() as found:
        yield found


@pytest.fixture
def board(tmp_path):
    return Board(tmp_path / "board")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return small_onnx.save_perceptron(tmp_path_factory.mktemp("model") / "m.onnx").read_bytes()


@pytest.fixture(scope="module")
def feeds():
    return packed({"input": small_onnx.samples(4)})


# -- one file ----------------------------------------------------------------------------------------------------------


def test_it_is_packed_into_one_file_with_the_same_bytes_every_time():
    assert pack_agent() == pack_agent()
    with zipfile.ZipFile(io.BytesIO(pack_agent())) as archive:
        assert sorted(archive.namelist()) == sorted(
            ["__main__.py", *(f"{name}.py" for name in PARTS if name != "agent")]
        )
        assert archive.read("__main__.py") == (FOLDER / "agent.py").read_bytes()


def test_it_is_python_3_8_and_needs_nothing_but_numpy_and_a_runtime():
    imports = set()
    for part in FOLDER.glob("*.py"):
        tree = ast.parse(part.read_text(), feature_version=(3, 8))
        imports |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imports |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imports} <= {
        *sys.stdlib_module_names,
        *PARTS,
        "numpy",
        "onnxruntime",
        "tensorrt",
    }


def test_a_request_may_be_an_argument(board):
    board.python = (*board.python, "-I")
    words = [*board.python, str(board.program), '{"command": "dance"}']
    done = subprocess.run(words, env=board.environment, capture_output=True, check=True, stdin=subprocess.DEVNULL)
    event = json.loads(done.stdout)
    assert (event["event"], event["kind"]) == ("error", "request")
    assert "'dance'" in event["message"]


@pytest.mark.parametrize("line", [b"{", b"[1]\n", b"\xff\n"])
def test_what_is_no_request_is_an_error_and_no_traceback(board, line):
    with board.start() as process:
        out, errors = process.communicate(line)
    assert json.loads(out)["kind"] == "request"
    assert errors == b""


def test_facts_are_versions_sensors_and_files_of_the_kernel(board):
    answer = board.answer(command="facts")
    assert answer["packages"]["numpy"] == np.__version__
    assert answer["packages"]["tensorrt"] is None
    assert "CPUExecutionProvider" in answer["providers"]
    assert answer["files"]["proc/meminfo"].startswith("MemTotal:")
    assert answer["state"]["processors"] == len(os.sched_getaffinity(0))
    assert {found["name"] for found in answer["sensors"]} >= {"nvml counter", "hwmon", "rapl", "pmic"}
    assert all(found["usable"] or (found["detail"] and found["remedy"]) for found in answer["sensors"])
    assert answer["free_bytes"] > 0


# -- a measurement -----------------------------------------------------------------------------------------------------


def test_a_model_that_was_sent_is_measured_and_every_sample_comes_back(board, model, feeds):
    for content, ending in ((model, "onnx"), (feeds, "npz")):
        assert board.store(content, ending)["event"] == "result"
    *progress, answer = board.measure(model, feeds)
    assert any("session 2 of 2" in event["message"] for event in progress)
    assert answer["event"] == "result"
    assert answer["runtime"].endswith("CPUExecutionProvider")
    assert answer["threads"] == "1"
    assert len(answer["repeats"]) == 2
    assert len(answer["paces_s"]) == 3
    assert all(len(repeat["samples_ms"]) >= 6 and min(repeat["samples_ms"]) >= 0 for repeat in answer["repeats"])
    assert answer["after"]["at_s"] > answer["before"]["at_s"]
    assert answer["after"]["own_s"] >= answer["before"]["own_s"]
    assert answer["energy"] is None
    assert board.names() == sorted([f"{sha(model)}.onnx", f"{sha(feeds)}.npz"])
    assert board.cache.stat().st_mode & 0o777 == 0o700


def test_the_energy_comes_back_in_windows_and_the_idle_power_too(board, model, feeds, tmp_path):
    fake_vcgencmd(tmp_path / "bin")
    board.environment["PATH"] = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    plan = {
        "sensor": {"backend": "pmic"},
        "on_loss": "next",
        "windows": 2,
        "most_windows": 2,
        "half_width": 0.5,
        "window_s": 0.1,
        "idle_s": 0.2,
        "idle_windows": 2,
        "longest_delay_s": 0.01,
        "warm_up_s": 0.01,
    }
    energy = board.measure(model, feeds, energy=plan, repeats=1)[-1]["energy"]
    assert (len(energy["windows"]), len(energy["idle"])) == (2, 2)
    for window in (*energy["windows"], *energy["idle"]):
        assert window["joules"] / window["seconds"] == pytest.approx(1.1451 * 2 * 5 + 0.5879, rel=1e-3)
        assert window["calls"] > 1
    assert "Raspberry Pi 5" in energy["method"]


@pytest.fixture
def here(parts, board, monkeypatch):
    """What the agent does, in this process: faster, and just as it is."""
    monkeypatch.setenv("TMPDIR", str(board.temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    cache = parts.cache.Cache(board.cache)

    def measure(model, feeds, **changed):
        board.put(model, feeds)
        return parts.agent.measure(measurement(model, feeds, **changed), cache, lambda words: None)

    return SimpleNamespace(measure=measure, cache=cache)


def test_without_a_sensor_the_reason_comes_back_instead_of_windows(here, model, feeds):
    plan = {"sensor": {"backend": "hwmon", "total_rail": "VDD_IN", "sum_rails": []}, "on_loss": "next"}
    energy = here.measure(model, feeds, energy=plan, repeats=1)["energy"]
    assert energy["windows"] == []
    assert "no INA3221 or INA238" in energy["refused"][0]["detail"]


@pytest.mark.parametrize(
    ("changed", "kind", "words"),
    [
        ({"runtime": "abacus"}, "request", "no runtime is called 'abacus'"),
        ({"runtime": "onnxruntime CUDA"}, "missing", "cannot start its CUDAExecutionProvider"),
        ({"energy": {"sensor": {"backend": "dowsing"}}}, "request", "no sensor is called 'dowsing'"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_its_kind(parts, here, model, feeds, changed, kind, words):
    with pytest.raises(parts.common.RefusedError, match=words) as refused:
        here.measure(model, feeds, **changed)
    assert refused.value.kind == kind
    assert refused.value.remedy


def test_a_file_that_is_no_model_is_refused_with_the_words_of_onnxruntime(parts, here, feeds):
    with pytest.raises(parts.common.RefusedError, match=r"onnxruntime .* does not run the model: ") as refused:
        here.measure(b"nothing that runs", feeds)
    assert refused.value.kind == "runtime"


def test_inputs_are_never_unpickled(parts, here, model):
    buffer = io.BytesIO()
    np.savez(buffer, input=np.array([{"a": 1}], dtype=object))
    with pytest.raises(parts.common.RefusedError, match=r"the inputs cannot be read: .*pickle"):
        here.measure(model, buffer.getvalue())


def test_inputs_of_another_model_are_named(parts, here, model):
    with pytest.raises(parts.common.RefusedError, match="the inputs lack input"):
        here.measure(model, packed({"image": small_onnx.samples(4)}))


def test_a_request_that_lacks_something_is_an_error_and_no_traceback(board, model, feeds):
    board.put(model, feeds)
    board.cache.chmod(0o755)
    answer = board.answer(command="measure", model=sha(model), feeds=sha(feeds))
    assert (answer["kind"], answer["message"]) == ("request", "the request lacks 'patience'")
    assert board.cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("module", ["numpy", "onnxruntime"])
def test_a_board_without_a_package_says_how_to_get_it(board, model, feeds, tmp_path, module):
    (tmp_path / f"{module}.py").write_text("raise ImportError('not on this board')\n")
    board.environment["PYTHONPATH"] = str(tmp_path)
    answer = board.measure(model, feeds)[-1]
    assert answer["kind"] == "missing"
    assert f"{module} cannot be imported: not on this board" in answer["message"]
    assert "pip install numpy onnxruntime" in answer["remedy"]


# -- the folder --------------------------------------------------------------------------------------------------------


def test_files_that_are_not_there_or_damaged_are_named(parts, here, board, model, feeds):
    board.put(model, feeds)
    names = [f"{sha(model)}.onnx", f"{sha(feeds)}.npz"]
    assert [file.name for file in here.cache.stored(*names)] == names
    (board.cache / names[0]).write_bytes(model[:-1])
    (board.cache / names[1]).unlink()
    with pytest.raises(parts.common.RefusedError) as refused:
        here.cache.stored(*names)
    assert (refused.value.kind, str(refused.value).split()) == ("absent", names)


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({"sha256": "0" * 64}, "hash"),
        ({"sha256": "../" * 21 + "x"}, "request"),
        ({"ending": "py"}, "request"),
        ({"ending": "../onnx"}, "request"),
    ],
)
def test_only_what_has_its_hash_for_a_name_is_kept(board, model, changed, kind):
    request = {"sha256": sha(model), "ending": "onnx", **changed}
    assert board.answer(model, command="store", size=len(model), **request)["kind"] == kind
    assert board.names() == []


def test_half_a_file_is_not_kept(board, model):
    with board.start() as process:
        request = {"command": "store", "sha256": sha(model), "ending": "onnx", "size": len(model)}
        out, _ = process.communicate(json.dumps(request).encode() + b"\n" + model[:100])
    answer = json.loads(out)
    assert (answer["kind"], answer["message"]) == ("hash", f"100 of {len(model)} bytes came")
    assert board.names() == []


def test_a_full_disk_is_named_before_anything_is_sent(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1 << 20))
    with pytest.raises(parts.common.RefusedError, match="1 MB free, wanted 66 MB") as refused:
        parts.cache.Cache(tmp_path).store("0" * 64, "onnx", 2 << 20, lambda count: pytest.fail("nothing is read"))
    assert refused.value.kind == "disk"


def test_a_disk_that_fills_up_meanwhile_is_named_and_leaves_nothing(board):
    content = bytes(1 << 20)
    limit = (1 << 16, 1 << 16)
    with board.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)) as process:
        request = {"command": "store", "sha256": sha(content), "ending": "onnx", "size": len(content)}
        out, _ = process.communicate(json.dumps(request).encode() + b"\n" + content)
    answer = json.loads(out)
    assert (answer["kind"], answer["remedy"]) == ("disk", "free some space on the board")
    assert board.names() == []


def test_a_home_that_cannot_be_written_leads_to_a_folder_in_tmp(board, model):
    board.cache.parent.write_text("not a folder")
    assert board.store(model, "onnx")["event"] == "result"
    (folder,) = board.temporary.glob("edgelean-*")
    assert [file.name for file in folder.iterdir()] == [f"{sha(model)}.onnx"]
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_in_tmp_that_somebody_else_put_there_is_not_used(board, tmp_path):
    board.cache.parent.write_text("not a folder")
    (tmp_path / "elsewhere").mkdir()
    (board.temporary / f"edgelean-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    answer = board.answer(command="facts")
    assert answer["kind"] == "folder"
    assert "belongs to somebody else" in answer["message"]


def test_clean_removes_what_was_sent_and_nothing_that_the_agent_did_not_put_there(here, board, model, feeds):
    board.put(model, feeds)
    (board.cache / f"{'1' * 64}.engine").write_bytes(b"an engine")
    here.cache.clean([sha(model)])
    assert board.names() == sorted([f"{sha(feeds)}.npz", f"{'1' * 64}.engine"])
    here.cache.clean([sha(feeds), "1" * 64])
    assert board.names() == [f"{'1' * 64}.engine"]
    (board.cache / "letter.txt").write_text("mine")
    here.cache.clean(None)
    assert board.names() == ["letter.txt"]


def test_the_folder_is_gone_when_only_the_agent_is_left_in_it(board, model, feeds):
    board.put(model, feeds)
    (board.cache / f"agent-{'2' * 64}.pyz").write_bytes(b"the agent")
    board.answer(command="clean", files=[sha(model), sha(feeds)])
    assert not board.cache.exists()


@pytest.mark.parametrize(("most_bytes", "left"), [(10**6, ["2", "3", "4", "l"]), (250, ["3", "4", "l"])])
def test_what_nobody_used_for_a_day_goes_and_the_oldest_of_too_much(parts, tmp_path, monkeypatch, most_bytes, left):
    monkeypatch.setattr(parts.cache, "MOST_BYTES", most_bytes)
    for name, hours in (("1", 25), ("2", 3), ("3", 2), ("4", 1)):
        file = tmp_path / f"{name * 64}.onnx"
        file.write_bytes(bytes(100))
        os.utime(file, (time.time() - hours * 3600,) * 2)
    (tmp_path / "letter.txt").write_text("x" * 500)
    os.utime(tmp_path / "letter.txt", (0, 0))
    parts.cache.Cache(tmp_path).prune()
    assert sorted(file.name[0] for file in tmp_path.iterdir()) == left


# -- alone on the board ------------------------------------------------------------------------------------------------


def test_a_busy_board_says_who_and_since_when(board, model, feeds):
    board.put(model, feeds)
    lock = board.temporary / "edgelean.lock"
    lock.write_text('{"who": "ada@\\u001b[31mloom", "since": "10:20:30"}')
    with lock.open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        answer = board.answer(command="measure", **measurement(model, feeds))
    assert (answer["kind"], answer["message"]) == ("busy", "busy with ada@[31mloom since 10:20:30")
    assert board.answer(command="measure", **measurement(model, feeds, who="me"))["event"] == "result"
    assert json.loads(lock.read_text())["who"] == "me"


@contextlib.contextmanager
def long_measurement(board, model, feeds):
    """An agent that would go on for minutes, and is in the middle of it."""
    board.put(model, feeds)
    patience = {**PATIENCE, "percentile": 50, "least_s": 300.0, "cap_s": 300.0}
    with board.start() as process:
        request = {"command": "measure", **measurement(model, feeds, patience=patience)}
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        while b"timing calls" not in process.stdout.readline():
            pass
        try:
            yield process
        finally:
            process.kill()


def is_free(board):
    with (board.temporary / "edgelean.lock").open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


def test_a_terminated_measurement_frees_the_board(board, model, feeds):
    with long_measurement(board, model, feeds) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 128 + signal.SIGTERM
        assert process.stderr.read() == b""
    assert is_free(board)


def test_it_stops_when_whoever_asked_has_gone(board, model, feeds):
    with long_measurement(board, model, feeds) as process:
        process.stdin.close()
        assert process.wait(timeout=10) == 128 + signal.SIGTERM
    assert is_free(board)


def test_a_pipe_that_broke_ends_it_without_a_traceback(board):
    with board.start() as process:
        process.stdout.close()
        process.stdin.write(b'{"command": "facts"}\n')
        process.stdin.flush()
        assert process.wait(timeout=20) == 1
        assert process.stderr.read() == b""
