from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelean.board import load_board
from edgelean.board.document import knobs_of
from edgelean.budget import Budget, Budgets, parse_budget
from edgelean.errors import InputError, MissingError
from edgelean.profile import ControlSettings, Profile, load_profile, profile_names, target_names
from edgelean.shelf import shelf

SHIPPED = {
    "jetson-orin",
    "jetson-orin-nx",
    "jetson-orin-nano",
    "jetson-thor",
    "rtx-3060",
    "rtx-4070",
    "rtx-4090",
    "rtx-5090",
    "h100",
    "raspberry-pi-5",
    "this-machine",
}
MINIMAL = """
board = "rtx-4090"
precision = "fp16"
batch = 8
targets = ["onnx-fp32"]
[budgets]
latency = "2ms"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def test_the_shelf_has_every_profile_that_the_readme_promises():
    assert set(profile_names()) >= SHIPPED


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_shipped_profile_names_a_board_and_targets_that_exist(name):
    profile = load_profile(name)
    assert load_board(profile.board).title
    assert set(profile.targets) <= set(target_names())


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_shipped_profile_says_how_to_make_ones_own_and_how_to_bound_a_tail(name):
    text = (shelf("profiles") / f"{name}.toml").read_text()
    assert "edgelean profiles new" in text
    assert "percentile = 99" in text


def test_the_machine_that_trains_has_relative_budgets():
    budgets = load_profile("this-machine").budgets
    assert budgets.latency is not None
    assert budgets.latency.share == 0.5
    assert budgets.energy is not None
    assert budgets.energy.share == 0.5


@pytest.mark.parametrize(
    ("quantity", "text", "limit", "share"),
    [
        ("latency", "2ms", 2, None),
        ("latency", "350us", 0.35, None),
        ("latency", "0.5s", 500, None),
        ("latency", " .5 ms ", 0.5, None),
        ("latency", "1e-3s", 1, None),
        ("energy", "10mJ", 10, None),
        ("energy", "2J", 2000, None),
        ("energy", "50uJ", 0.05, None),
        ("energy", "50%", None, 0.5),
        ("latency", "100%", None, 1),
    ],
)
def test_a_budget_is_a_number_and_a_unit(quantity, text, limit, share):
    budget = parse_budget(quantity, text)
    assert (budget.limit, budget.share) == (pytest.approx(limit) if limit else None, share)
    assert budget.percentile == 50


@pytest.mark.parametrize(
    ("quantity", "text", "complaint"),
    [
        ("latency", "2", 'such as "2ms"'),
        ("latency", "fast", 'such as "2ms"'),
        ("latency", "2mJ", 'such as "2ms"'),
        ("latency", "", 'such as "2ms"'),
        ("latency", "nanms", 'such as "2ms"'),
        ("energy", "2ms", 'such as "10mJ"'),
        ("energy", "2MJ", 'such as "10mJ"'),
        ("latency", "0ms", "must be above 0"),
        ("energy", "-3mJ", "must be above 0"),
        ("latency", "0%", "must be above 0"),
        ("latency", "1e999s", "finite"),
        ("energy", "101%", "at most 100%"),
    ],
)
def test_a_bad_budget_is_answered_with_what_was_found_and_what_is_allowed(quantity, text, complaint):
    with pytest.raises(InputError) as caught:
        parse_budget(quantity, text)
    assert f"{quantity} budget {text!r}" in str(caught.value)
    assert complaint in str(caught.value)


@pytest.mark.parametrize("percentile", [0, 100, -1, float("nan")])
def test_a_percentile_is_between_0_and_100(percentile):
    with pytest.raises(InputError, match="percentile must be between 0 and 100"):
        parse_budget("latency", "2ms", percentile)


@given(
    budget=st.one_of(
        st.floats(1e-6, 1e6).map(lambda limit: Budget(quantity="energy", limit=limit)),
        st.floats(1e-6, 1).map(lambda share: Budget(quantity="energy", share=share)),
    )
)
def test_a_budget_that_is_printed_can_be_read_again(budget):
    again = parse_budget("energy", str(budget))
    assert again.resolve(1.0) == pytest.approx(budget.resolve(1.0), rel=1e-9)
    assert (again.limit is None) == (budget.limit is None)


def test_a_share_is_of_what_the_full_size_model_costs():
    assert parse_budget("latency", "40%").resolve(5.0) == pytest.approx(2.0)
    assert parse_budget("latency", "3ms").resolve(5.0) == 3.0


@pytest.mark.parametrize("full_size", [0.0, -1.0, float("nan"), float("inf")])
def test_a_share_of_nothing_is_refused(full_size):
    with pytest.raises(InputError, match="give the budget in mJ"):
        parse_budget("energy", "40%").resolve(full_size)


def test_a_tail_of_the_latency_can_be_bounded(tmp_path):
    text = MINIMAL.replace('"2ms"', '{ limit = "2ms", percentile = 99 }')
    budget = load_profile(write(tmp_path, text)).budgets.latency
    assert budget == Budget(quantity="latency", limit=2, percentile=99)


def test_what_is_left_out_has_its_default(tmp_path):
    profile = load_profile(write(tmp_path, MINIMAL))
    assert profile.name == "mine"
    assert profile.budgets.energy is None
    assert profile.control == ControlSettings()
    assert (profile.country, profile.carbon_g_per_kwh) == (None, None)
    assert profile.electricity.g_per_kwh == 475
    assert "the mean of the world" in profile.electricity.words


@pytest.mark.parametrize(
    ("line", "g_per_kwh", "words"),
    [
        ('country = "FRA"', 56, "the mean of France"),
        ("carbon_g_per_kwh = 31.5", 31.5, "as the profile states"),
        ("carbon_g_per_kwh = 0", 0, "as the profile states"),
    ],
)
def test_electricity_is_that_of_the_country_or_of_the_number(tmp_path, line, g_per_kwh, words):
    profile = load_profile(write(tmp_path, f"{line}\n{MINIMAL}"))
    assert profile.electricity.g_per_kwh == pytest.approx(g_per_kwh, abs=0.5)
    assert words in profile.electricity.words


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ('"2ms"', '{ limit = "2ms", share = "50%" }', "budgets.latency: give either limit"),
        ('"2ms"', "{ percentile = 99 }", "budgets.latency: give either limit"),
        ('"2ms"', '{ limit = "50%" }', "budgets.latency: limit = '50%'"),
        ('"2ms"', '{ limit = "2ms", percentile = 100 }', "budgets.latency.percentile: should be less than 100"),
        (
            '"2ms"',
            '{ limit = "2ms", percent = 9 }',
            "budgets.latency.percent: is not a known key; did you mean percentile",
        ),
        ('"2ms"', "2", 'budgets.latency: a number needs its unit, such as "2ms"'),
        ('"2ms"', '"0ms"', "budgets.latency: latency budget '0ms': must be above 0"),
        ('"2ms"', "[2]", "budgets.latency: should be a valid dictionary"),
        ('latency = "2ms"', "", "budgets: give a latency"),
        ("latency =", "latancy =", "budgets.latancy: is not a known key; did you mean latency"),
        ('latency = "2ms"', 'energy = { limit = "2mJ", percentile = 99 }', "budgets.energy: percentile is for latency"),
        ("batch = 8", "batch = 0", "batch: should be greater than 0, found 0"),
        ("batch = 8", "batch = 1.5", "batch: should be a valid integer"),
        ("batch = 8", "", "batch: is missing"),
        ("batch = 8", "batch = 8\nbach = 8", "bach: is not a known key; did you mean batch"),
        ('"fp16"', '"fp8"', "precision: should be 'fp32', 'fp16' or 'int8', found 'fp8'"),
        ('"rtx-4090"', '"rtx-4080"', "board: there is no board named 'rtx-4080': did you mean rtx-4090"),
        ('"rtx-4090"', '"mine/board.toml"', "board.toml: this board file does not exist"),
        ('["onnx-fp32"]', '["onnx-fp23"]', "targets: there is no export target 'onnx-fp23': did you mean onnx-fp32"),
        ('["onnx-fp32"]', "[]", "targets: Tuple should have at least 1 item"),
        ("[budgets]", "[control]\nwindow = [0.5, 0.5]\n[budgets]", "control: window must be two shares"),
        ("[budgets]", "[control]\nwindow = [0.5, 0.1]\n[budgets]", "control: window must be two shares"),
        ("[budgets]", "[control]\nwindow = [0.1, 1.5]\n[budgets]", "control: window must be two shares"),
        ("[budgets]", "[control]\nwindow = [0.1]\n[budgets]", "control.window.1: is missing"),
        (
            "[budgets]",
            "[control]\nwait = 0.6\n[budgets]",
            "control: wait (0.6) must be before the end of the window (0.5)",
        ),
        ("[budgets]", "[control]\nlargest_cut = 1.0\n[budgets]", "control.largest_cut: should be less than 1"),
        ("[budgets]", "[control]\nmargin = inf\n[budgets]", "control.margin: should be a finite number"),
        ("[budgets]", "[control]\nsteps = 3\n[budgets]", "control.steps: is not a known key"),
        (
            "[budgets]",
            "[accuracy]\ncut_tolerance = -0.1\n[budgets]",
            "accuracy.cut_tolerance: should be greater than 0",
        ),
        ("batch = 8", "batch = 8\ncarbon_g_per_kwh = nan", "carbon_g_per_kwh: should be a finite number"),
        ("batch = 8", "batch = 8\ncarbon_g_per_kwh = -1", "carbon_g_per_kwh: should be greater than or equal to 0"),
        ("batch = 8", 'batch = 8\ncountry = "Germany"', "country: there is no country 'Germany'"),
        ("batch = 8", 'batch = 8\ncountry = "Germany"', "did you mean DEU (Germany)?"),
        ("batch = 8", "batch = 8\ncountry = 49", "country: should be a valid string"),
        (
            "batch = 8",
            'batch = 8\ncountry = "DEU"\ncarbon_g_per_kwh = 380',
            "give either country or carbon_g_per_kwh, and not both",
        ),
        ("batch = 8", "batch = = 8", "is not valid TOML: Invalid value (at line 4, column 9)"),
    ],
)
def test_a_bad_profile_is_answered_with_file_key_and_what_is_allowed(tmp_path, before, after, complaint):
    assert before in MINIMAL
    path = write(tmp_path, MINIMAL.replace(before, after))
    with pytest.raises(InputError) as caught:
        load_profile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert complaint in str(caught.value)


def test_an_unknown_profile_is_answered_with_near_names():
    with pytest.raises(MissingError, match="no profile named 'jetson-oring': did you mean jetson-orin"):
        load_profile("jetson-oring")


def test_a_board_of_ones_own_lies_beside_the_profile(tmp_path, monkeypatch):
    (tmp_path / "bench.toml").write_text("title = 'Bench'\nkind = 'cpu'\n")
    path = write(tmp_path, MINIMAL.replace('"rtx-4090"', '"bench.toml"'))
    monkeypatch.chdir("/")
    assert load_board(load_profile(path).board).title == "Bench"


def test_other_budgets_replace_the_profiles_own_and_keep_the_percentile(tmp_path):
    text = MINIMAL.replace('"2ms"', '{ limit = "2ms", percentile = 99 }')
    profile = load_profile(write(tmp_path, text))
    other = profile.with_budgets(latency="50%", energy="3mJ")
    assert other.budgets.latency == Budget(quantity="latency", share=0.5, percentile=99)
    assert other.budgets.energy == Budget(quantity="energy", limit=3)
    assert profile.budgets.energy is None
    assert other.with_budgets() == other
    with pytest.raises(InputError, match="energy budget '3'"):
        profile.with_budgets(energy="3")


@pytest.mark.parametrize("name", ["jetson-orin", "this-machine"])
def test_a_profile_survives_json(name):
    profile = load_profile(name)
    assert Profile.model_validate_json(profile.model_dump_json()) == profile


def test_a_budget_made_in_python_is_checked_too():
    with pytest.raises(ValueError, match="either limit"):
        Budget(quantity="latency")
    with pytest.raises(ValueError, match="latency"):
        Budgets()


def test_every_knob_explains_itself():
    for knob in knobs_of(load_profile("jetson-orin")):
        assert knob.sentence.endswith("."), knob.key
        assert knob.unit or knob.key in {"board", "precision", "targets", "measuring.on_sensor_loss"}, knob.key


def test_knobs_of_the_controller_are_replaced_as_set_asks():
    profile = load_profile("raspberry-pi-5")
    steered = profile.with_control({"hankel_tolerance": "0.02", "window": "[0, 0.1]", "wait": "0", "score": "random"})
    assert steered.control.hankel_tolerance == 0.02
    assert steered.control.window == (0.0, 0.1)
    assert (steered.control.score, steered.control.events) == ("random", profile.control.events)
    assert profile.with_control({}) == profile
    assert profile.control.hankel_tolerance is None


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ({"hankel_tolerance": "2"}, "less than 1"),
        ({"hankel_tolerance": "much"}, "valid number"),
        ({"hankel_tolerance": "0"}, "greater than 0"),
        ({"window": "[0.5, 0.1]"}, "start < end"),
        ({"score": "best"}, "energy"),
    ],
)
def test_a_knob_that_is_set_wrongly_is_refused_by_name(setting, why):
    with pytest.raises(InputError, match=why) as refused:
        load_profile("raspberry-pi-5").with_control(setting)
    assert f"--set {next(iter(setting))}=" in str(refused.value)
