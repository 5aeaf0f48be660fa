import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgelean.board import board_names, load_board
from edgelean.cli.boards import app as boards
from edgelean.cli.profiles import app as profiles
from edgelean.errors import InputError, MissingError
from edgelean.profile import Profile, load_profile, profile_names


def run(app, *arguments: str) -> str:
    """Run a command that has to succeed, and return what it prints."""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def failure(app, *arguments: str) -> BaseException | None:
    return CliRunner().invoke(app, arguments).exception


def test_boards_are_listed_with_how_much_of_them_is_guessed():
    text = run(boards, "list")
    assert all(name in text for name in board_names())
    assert "guesses" in text
    assert run(boards) == text


def test_a_board_is_shown_with_value_unit_confidence_and_source():
    text = run(boards, "show", "jetson-agx-orin-64gb")
    board = load_board("jetson-agx-orin-64gb")
    for key, fact in board.facts().items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"{key} ")]
        assert line.split()[1] == f"{fact.value:g}"
        assert f" {fact.confidence} " in line
        assert fact.source[:40] in line
    assert "VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0" in text
    assert "0 MAXN (1300 MHz)" in text


def test_an_unknown_number_of_a_board_is_shown_with_the_reason():
    lines = [line.split() for line in run(boards, "show", "this-machine").splitlines()]
    rows = [words for words in lines if words and words[0].startswith("compute.")]
    assert len(rows) == 4
    assert all(words[1] == "?" and "measured" in words for words in rows)


@pytest.mark.parametrize("app", [boards, profiles])
def test_a_list_fits_a_terminal_of_80_columns_without_a_shortened_number(app, monkeypatch):
    monkeypatch.setattr("edgelean.cli.tables.PIPE_COLUMNS", 80)
    lines = run(app, "list").splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


def test_boards_are_printed_as_json_and_nothing_else():
    listed = json.loads(run(boards, "list", "--json"))
    assert [board["name"] for board in listed] == list(board_names())
    shown = json.loads(run(boards, "show", "rtx-4090", "--json"))
    assert shown["power"]["idle_w"]["value"] is None


def test_profiles_are_listed_with_their_budgets():
    text = run(profiles, "list")
    assert all(name in text for name in profile_names())
    assert run(profiles) == text


def test_a_profile_is_shown_with_every_knob_its_unit_and_its_sentence():
    text = run(profiles, "show", "jetson-orin")
    for expected in (
        "control.largest_cut",
        "No single cut may remove more of the predicted cost.",
        "share of the training steps",
        "carbon_g_per_kwh",
        "0.05, 0.5",
    ):
        assert expected in text


def test_profiles_are_printed_as_json_that_reads_back():
    assert Profile.model_validate_json(run(profiles, "show", "jetson-orin", "--json")) == load_profile("jetson-orin")
    assert len(json.loads(run(profiles, "list", "--json"))) == len(profile_names())


def test_a_good_profile_is_checked_with_ok(tmp_path):
    run(profiles, "new", "mine", "--board", "rtx-4090", "--latency", "1ms", "--out", str(tmp_path / "p.toml"))
    assert run(profiles, "check", str(tmp_path / "p.toml")).startswith("OK: ")


def test_a_bad_profile_is_checked_with_one_message_that_ends_in_exit_code_2(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("board = 'rtx-4090'\n")
    error = failure(profiles, "check", str(path))
    assert isinstance(error, InputError)
    assert error.exit_code == 2
    assert f"{path}: precision: is missing" in str(error)


@pytest.mark.parametrize("app", [boards, profiles])
def test_an_unknown_name_raises_the_error_that_the_command_line_prints(app):
    error = failure(app, "show", "rtx-4091")
    assert isinstance(error, MissingError)
    assert "did you mean" in str(error)


def test_a_new_profile_says_what_was_asked_and_explains_the_rest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(profiles, "new", "mine", "--board", "jetson-orin-nx-16gb", "--latency", "350us", "--energy", "33.3%")
    profile = load_profile(tmp_path / "mine.toml")
    assert (profile.board, profile.precision, profile.batch) == ("jetson-orin-nx-16gb", "fp16", 1)
    assert profile.targets == ("onnx-fp32", "onnx-fp16", "tensorrt-fp16")
    assert (str(profile.budgets.latency), str(profile.budgets.energy)) == ("0.35ms", "33.3%")
    assert "# largest_cut = 0.35  # share of the cost: No single cut" in (tmp_path / "mine.toml").read_text()


def test_the_comments_of_a_new_profile_are_its_defaults(tmp_path):
    path = tmp_path / "mine.toml"
    run(profiles, "new", "mine", "--board", "raspberry-pi-5", "--energy", "2J", "--batch", "4", "--out", str(path))
    plain = load_profile(path)
    lines = path.read_text().splitlines()
    opened = [line.removeprefix("# ") if "  # " in line and "..." not in line else line for line in lines]
    assert opened != lines
    path.write_text("\n".join(opened))
    assert load_profile(path) == plain
    assert (plain.precision, plain.batch, plain.targets) == ("fp32", 4, ("onnx-fp32",))


def test_a_new_profile_may_name_a_board_file_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bench.toml").write_text("title = 'Bench'\nkind = 'cpu'\n")
    Path("deep").mkdir()
    run(profiles, "new", "mine", "--board", "bench.toml", "--latency", "1ms", "--out", "deep/mine.toml")
    assert load_board(load_profile("deep/mine.toml").board).title == "Bench"


def test_a_new_profile_overwrites_nothing(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("precious")
    error = failure(profiles, "new", "mine", "--board", "rtx-4090", "--latency", "1ms", "--out", str(path))
    assert isinstance(error, InputError)
    assert "exists already" in str(error)
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("mine", "--board", "rtx-4090"), "a profile needs a budget"),
        (("mine", "--board", "rtx-4090", "--latency", "0ms"), "must be above 0"),
        (("mine", "--board", "rtx-4080", "--latency", "1ms"), "no board named"),
        (("a/b", "--board", "rtx-4090", "--latency", "1ms"), "cannot be the name of a profile"),
        (("mine", "--board", "rtx-4090", "--latency", "1ms", "--out", "gone/mine.toml"), "cannot be written"),
    ],
)
def test_a_new_profile_that_cannot_be_leaves_no_file_behind(tmp_path, monkeypatch, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    error = failure(profiles, "new", *arguments)
    assert isinstance(error, InputError | MissingError)
    assert complaint in str(error)
    assert list(tmp_path.iterdir()) == []


def test_the_commands_import_nothing_heavy():
    heavy = ("torch", "onnx", "onnxruntime", "numpy", "pydantic", "matplotlib")
    code = (
        "import sys, edgelean.cli.boards, edgelean.cli.profiles\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_probe_refuses_before_it_asks_a_device(tmp_path):
    (tmp_path / "there.toml").write_text("precious")
    for name, complaint in (
        ("there.toml", "exists already"),
        ("board.json", "ends in .toml"),
        ("gone/b.toml", "folder"),
    ):
        error = failure(boards, "probe", "ssh://no.such.host.invalid", "--out", str(tmp_path / name))
        assert isinstance(error, InputError)
        assert complaint in str(error)
    assert isinstance(failure(boards, "probe", "nano@10.0.0.7"), InputError)
    assert [file.name for file in tmp_path.iterdir()] == ["there.toml"]


def test_this_machine_is_probed_into_a_file_that_a_profile_can_name(tmp_path, monkeypatch):
    for name in ("TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    path = tmp_path / "mine.toml"
    text = run(boards, "probe", "local", "--out", str(path))
    board = load_board(path)
    assert board.compute.fp32_tflops.confidence == "measured"
    assert board.memory.capacity_gb.value > 0
    assert "edgelean boards probe local" in path.read_text()
    assert board.title in text
    assert "nvml counter" in text
    assert "`edgelean calibrate --target local` measures what the cost model needs" in text
    assert 'board = "mine.toml"' in text
