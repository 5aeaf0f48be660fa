"""Boards over ssh: a real sshd on the loopback interface, the real ssh, the real agent, and what goes wrong there."""

import fcntl
import json
import os
import shutil
import signal
import sys
from dataclasses import replace

import loopback_sshd
import pytest
import small_onnx
from agent_program import fake_vcgencmd
from typer.testing import CliRunner

from edgelean.board import Board, load_board
from edgelean.board.model import Match, Sensors
from edgelean.cli.boards import app
from edgelean.errors import DeviceError, InputError
from edgelean.reading import Provenance
from edgelean.sensors.protocol import EnergyProtocol
from edgelean.target import agent as agent_module
from edgelean.target.candidate import Candidate, Target
from edgelean.target.latency import Patience
from edgelean.target.local import Routine
from edgelean.target.remote import Ssh, parse_address
from edgelean.target.ssh import open_ssh

pytestmark = pytest.mark.skipif(not loopback_sshd.installed(), reason=loopback_sshd.WHY_NOT)

QUICK = Routine(
    repeats=1,
    attempts=1,
    pause_s=0.0,
    rest_s=0.0,
    patience=Patience(warm_up_s=0.01, least_s=0.01, cap_s=0.05, half_width=0.5),
    energy=EnergyProtocol(
        window_s=0.05, windows=2, most_windows=2, half_width=0.5, idle_s=0.1, idle_windows=2, warm_up_s=0.01
    ),
)
NEEDED = ("sh", "head", "wc", "mkdir", "mv", "rm", "id", "cat")
BOARD = Board(name="mine", title="My board", kind="cpu")


class Place:
    """What a board over ssh is on this machine: a home, a /tmp, programs, and the server that leads there."""

    def __init__(self, folder, server):
        self.folder, self.server = folder, server
        self.home, self.temporary, self.programs = folder / "home", folder / "tmp", folder / "bin"

    def python(self, *options):
        """Give the board a Python: this one, found as a board's own."""
        script = self.home / ".local/share/edgelean/bin/python3"
        script.parent.mkdir(parents=True, exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {" ".join(options)} "$@"\n')
        script.chmod(0o755)

    def left(self):
        """The agent's own files that are there."""
        folder = self.home / ".cache/edgelean"
        return sorted(file.suffix for file in folder.iterdir()) if folder.is_dir() else []


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server for all tests; each test has a home of its own behind the same path."""
    folder = tmp_path_factory.mktemp("sshd")
    place = folder / "place"
    environment = {
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "PATH": f"{place / 'bin'}",
        "OMP_NUM_THREADS": "1",
    }
    with loopback_sshd.sshd(folder, environment) as running:
        yield running


@pytest.fixture
def place(server, tmp_path, monkeypatch):
    folder = server.folder / "place"
    shutil.rmtree(folder, ignore_errors=True)
    found = Place(folder, server)
    for each in (found.home, found.temporary, found.programs):
        each.mkdir(parents=True)
    for name in NEEDED:
        (found.programs / name).symlink_to(shutil.which(name))
    found.python()
    server.client_config.write_text("")
    monkeypatch.setenv("PATH", f"{loopback_sshd.wrapper(tmp_path, server.client_config)}:{os.environ['PATH']}")
    return found


@pytest.fixture(scope="module")
def candidate(tmp_path_factory):
    model = small_onnx.save_perceptron(tmp_path_factory.mktemp("model") / "m.onnx")
    return Candidate(lambda precision: model, (), lambda: {"input": small_onnx.samples(4)})


def connected(place, *options, board=BOARD, **more):
    """Return a target behind the server, whose words are kept."""
    said = []
    target = open_ssh(
        place.server.known_as("board", *options), board, "fp32", 4, 50, routine=QUICK, tell=said.append, **more
    )
    target.said = said
    return target


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "arguments"),
    [
        ("ssh://nano", ("--", "nano")),
        ("ssh://nano/", ("--", "nano")),
        ("ssh://ada@10.0.0.7", ("-l", "ada", "--", "10.0.0.7")),
        ("ssh://ada@nano.local:2222", ("-p", "2222", "-l", "ada", "--", "nano.local")),
        ("ssh://[fe80::1%eth0]:22", ("-p", "22", "--", "fe80::1%eth0")),
    ],
)
def test_an_address_becomes_arguments_of_ssh(spec, arguments):
    assert parse_address(spec).arguments == arguments


@pytest.mark.parametrize(
    "spec",
    [
        *("ssh://", "ssh://-oProxyCommand=reboot", "ssh://-l@host", "ssh://a b", "ssh://host:0", "ssh://host:70000"),
        *("ssh://host;reboot", "ssh://u@h/x", "http://host", "ssh://host:$(reboot)", "ssh://host\n", "ssh://@host"),
    ],
)
def test_what_ssh_could_take_for_something_else_is_no_address(spec):
    with pytest.raises(InputError, match="wanted ssh://"):
        parse_address(spec)


# -- a reading ---------------------------------------------------------------------------------------------------------


def test_a_model_is_measured_on_the_board_and_nothing_is_left_there(place, candidate):
    target: Target = connected(place)
    reading = target.read(candidate)
    assert reading.latency.provenance is Provenance.MEASURED
    assert 0 < reading.latency.low <= reading.latency.value <= reading.latency.high
    assert (reading.batch, reading.percentile, len(reading.samples_ms) >= 6) == (4, 50, True)
    assert reading.conditions["runtime"].endswith("CPUExecutionProvider")
    assert (reading.conditions["threads"], reading.conditions["precision"]) == ("1", "fp32")
    assert reading.energy is None
    assert place.left() == [".npz", ".onnx", ".pyz"]
    sent = [words for words in target.said if "sending" in words]
    target.read(candidate)
    assert [words for words in target.said if "sending" in words] == sent
    assert len(sent) == 2
    target.close()
    assert place.left() == []


def test_energy_is_read_on_the_board_gross_and_net_and_put_together_here(place, candidate):
    fake_vcgencmd(place.programs)
    target = connected(place, board=BOARD.model_copy(update={"sensors": Sensors(backend="pmic")}))
    reading = target.read(candidate)
    assert reading.energy.value > 0
    assert abs(reading.energy_net.value) < 0.01 * reading.energy.value  # it draws the same with work and without
    assert reading.energy.provenance is Provenance.MEASURED
    assert reading.energy.method.startswith("PMIC rails of the Raspberry Pi 5")
    assert "idle power 12 W; gross" in reading.energy.method
    assert "net of the idle power" in reading.energy_net.method
    target.close()


def test_without_a_sensor_that_works_the_energy_is_the_cost_models_and_the_reason_is_a_condition(place, candidate):
    board = load_board("raspberry-pi-5").model_copy(update={"match": Match()})
    target = connected(place, board=board)
    reading = target.read(candidate)
    assert reading.energy.provenance is Provenance.MODELLED
    assert "there is no vcgencmd" in reading.conditions["sensors that failed"]
    target.close()


def test_a_greeting_of_the_login_shell_does_no_harm(place):
    for name in (".bashrc", ".profile", ".zshenv"):
        (place.home / name).write_text("echo Welcome to my board; echo '{\"event\": 1}'\n")
    connected(place).agent.line.close()


def test_a_jump_host_is_gone_through_as_ssh_is_configured(place):
    place.server.known_as("jump")
    connections = place.server.children()
    target = connected(place, "ProxyJump jump")
    assert len(set(place.server.children()) - set(connections)) == 2
    target.agent.line.close()


def test_a_board_is_probed_over_ssh_into_a_file(place, tmp_path, monkeypatch):
    monkeypatch.setattr("edgelean.target.describe.IDLE_S", 0.2)
    fake_vcgencmd(place.programs)
    (tmp_path / "out").mkdir()
    path = tmp_path / "out" / "pi.toml"
    address = place.server.known_as("board")
    result = CliRunner().invoke(app, ["probe", address, "--out", str(path), "--json"])
    assert result.exit_code == 0, result.output
    board = load_board(path)
    assert board.power.idle_w.value == pytest.approx(1.1451 * 2 * 5 + 0.5879, rel=1e-3)
    assert (board.power.idle_w.confidence, board.sensors.backend) == ("measured", "pmic")
    assert board.compute.fp32_tflops.value is None
    assert json.loads(result.stdout)["board"]["title"] == board.title
    assert place.left() == []


# -- the connection ----------------------------------------------------------------------------------------------------


def test_a_connection_that_drops_in_the_middle_is_made_again(place, candidate):
    target = connected(place)
    dropped = []

    def tell(words):
        target.said.append(words)
        if "timing calls" in words and not dropped:
            dropped.extend(place.server.children())
            for child in dropped:
                os.kill(child, signal.SIGKILL)

    hasty = replace(target.agent, tell=tell, sleep=lambda seconds: None)
    hasty.line.sleep = lambda seconds: None
    hasty.line.tell = tell
    reading = replace(target, agent=hasty).read(candidate)
    assert dropped
    assert reading.latency.value > 0
    assert any("trying again" in words for words in target.said)
    target.close()


def test_a_board_that_cannot_be_reached_is_tried_four_times_and_then_named(place):
    place.server.known_as("away", f"Port {loopback_sshd.free_port()}")
    said, slept = [], []
    line = Ssh(parse_address("ssh://away"), said.append, slept.append)
    with pytest.raises(DeviceError, match=r"ssh://away: no connection in 4 attempts: ssh says .*Connection refused"):
        line.run(("true",), b"", said.append)
    assert slept == sorted(slept)
    assert len(slept) == 3
    with pytest.raises(DeviceError, match="no connection in 1 attempts"):
        line.run(("true",), b"", said.append)
    line.close()


@pytest.mark.parametrize(
    ("option", "words", "remedy"),
    [
        ("UserKnownHostsFile {folder}/changed", "REMOTE HOST IDENTIFICATION HAS CHANGED", "ssh-keygen -R"),
        ("UserKnownHostsFile /dev/null", "Host key verification failed", "connect once by hand"),
        ("IdentityFile {folder}/stranger_key", "Permission denied", "ssh-copy-id"),
        ("HostName no.such.host.invalid", "Could not resolve hostname", "check the name"),
        ("NoSuchOption yes", "[Bb]ad configuration option", "correct the ssh configuration"),
    ],
)
def test_what_another_attempt_cannot_help_is_said_at_once_with_a_remedy(place, option, words, remedy):
    folder = place.server.folder
    stranger = (folder / "stranger_key.pub").read_text().rsplit(" ", 1)[0]
    (folder / "changed").write_text(f"[127.0.0.1]:{place.server.port} {stranger}\n")
    with pytest.raises(DeviceError, match=words) as refused:
        connected(place, option.format(folder=folder))
    assert remedy in str(refused.value)


def test_without_the_client_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    line = Ssh(parse_address("ssh://board"), print)
    with pytest.raises(DeviceError, match="ssh is not installed here: install the OpenSSH client"):
        line.run(("true",), b"", print)
    line.close()


def test_one_connection_serves_all_calls_and_none_stays_behind(place):
    connections = place.server.children()
    target = connected(place)
    assert len(set(place.server.children()) - set(connections)) == 1
    folder = target.agent.line._folder
    assert folder.stat().st_mode & 0o777 == 0o700
    target.agent.line.close()
    assert not folder.exists()


def test_without_a_shared_connection_every_call_makes_its_own(place, monkeypatch):
    monkeypatch.setattr("edgelean.target.remote.LONGEST_SOCKET", 5)
    target = connected(place)
    assert list(target.agent.line._folder.iterdir()) == []
    target.agent.line.close()


# -- the board ---------------------------------------------------------------------------------------------------------


def test_a_busy_board_is_waited_for(place, candidate, caplog):
    target = connected(place)
    lock = place.temporary / "edgelean.lock"
    lock.write_text('{"who": "ada@loom", "since": "10:20:30"}')
    with lock.open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        waiting = replace(target.agent, sleep=lambda seconds: fcntl.flock(stream, fcntl.LOCK_UN))
        reading = replace(target, agent=waiting).read(candidate)
    assert reading.latency.value > 0
    assert "the board is busy with ada@loom since 10:20:30: waiting" in caplog.text
    target.close()


def test_a_board_that_stays_busy_is_given_up(place, candidate, monkeypatch):
    monkeypatch.setattr(agent_module, "BUSY_S", 2.0)
    target = connected(place)
    lock = place.temporary / "edgelean.lock"
    lock.write_text("")
    with lock.open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        waiting = replace(target, agent=replace(target.agent, sleep=lambda seconds: None))
        with pytest.raises(DeviceError, match=r"still busy with another measurement after .* resume the run"):
            waiting.read(candidate)
    target.close()


def test_a_full_disk_is_named_with_what_is_free_and_what_is_wanted(place, candidate):
    shims = place.folder / "shims"
    shims.mkdir()
    (shims / "sitecustomize.py").write_text(
        "import shutil, types\nshutil.disk_usage = lambda path: types.SimpleNamespace(free=3 << 20)\n"
    )
    script = place.home / ".local/share/edgelean/bin/python3"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={shims} exec {sys.executable} "$@"\n')
    target = connected(place)
    with pytest.raises(DeviceError, match=r"3 MB free, wanted 64 MB: free some space on the board"):
        target.read(candidate)
    target.close()


def test_a_board_without_onnxruntime_is_told_how_to_get_it(place):
    place.python("-S")
    with pytest.raises(DeviceError, match="needs numpy and onnxruntime, it has none of them") as refused:
        connected(place)
    assert "pip install numpy onnxruntime" in str(refused.value)


def test_a_board_without_python_or_with_an_old_one_is_named(place):
    script = place.home / ".local/share/edgelean/bin/python3"
    script.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.6.9\nexit 1\n')
    with pytest.raises(DeviceError, match=r"Python 3\.6\.9 is too old: the agent needs Python 3\.8"):
        connected(place)
    script.unlink()
    with pytest.raises(DeviceError, match="there is no python3: the agent needs Python"):
        connected(place)


def test_a_home_that_cannot_be_written_leads_to_tmp(place):
    (place.home / ".cache").write_text("not a folder")
    target = connected(place)
    (folder,) = place.temporary.glob("edgelean-*")
    assert [file.suffix for file in folder.iterdir()] == [".pyz"]
    target.close()
    assert not folder.exists()


def test_another_board_than_that_of_the_profile_is_refused_before_anything_is_measured(place):
    with pytest.raises(
        InputError, match=r"wanted the board jetson-orin-nano-8gb-super .*, which is known by p3767-0003"
    ):
        connected(place, board=load_board("jetson-orin-nano-8gb-super"))


def test_a_gpu_board_is_not_measured_on_its_processor(place):
    board = Board(name="mine", title="Mine", kind="gpu")
    with pytest.raises(DeviceError, match="needs numpy and TensorRT 10 or newer, or an onnxruntime with CUDA"):
        connected(place, board=board)


def test_what_the_board_cannot_run_comes_back_with_its_words(place, tmp_path):
    broken = small_onnx.save(tmp_path / "broken.onnx", small_onnx.perceptron()[:1] * 2, small_onnx.weights())
    target = connected(place)
    for _ in ("sent first", "there already"):
        with pytest.raises(DeviceError, match=r"ssh://board: onnxruntime .* does not run the model"):
            target.read(Candidate(lambda precision: broken, (), lambda: {"input": small_onnx.samples(4)}))
    target.agent.line.close()
