"""A dry run tells the plan for the untrained model and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgelean.cli import app
from edgelean.errors import InputError

TINY = str(Path(__file__).parent / "tiny_recipe.py")
FIT = ("fit", TINY, "--profile", "raspberry-pi-5", "--dry-run")
BUDGETS = ("--latency", "60%", "--energy", "70%", "--size", "50%", "--memory", "80%")


def run(*arguments):
    return CliRunner().invoke(app, [*FIT, *arguments])


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_plan_holds_every_budget_and_says_what_can_be_reached(here):
    told = run(*BUDGETS, "--json")
    assert told.exit_code == 0, told.output
    plan = json.loads(told.output)
    assert [one["quantity"] for one in plan["quantities"]] == ["latency", "energy", "memory", "size"]
    for one in plan["quantities"]:
        assert one["least"] <= one["planned"] <= one["limit"] < one["full_size"]
    assert max(one["price"] for one in plan["quantities"]) > 0
    assert all(8 <= after <= before for _, _, before, after in plan["axes"])
    assert plan["parameters"][1] < plan["parameters"][0]
    assert plan["quantities"][3]["provenance"] == "measured"
    assert list(here.iterdir()) == []


def test_a_person_reads_axes_budgets_and_what_was_not_done(here):
    told = run("--latency", "60%", "--energy", "100%")
    assert told.exit_code == 0, told.output
    for text in ("nothing was trained", "What would go", "channels", "modelled", "latency"):
        assert text in " ".join(told.output.split())
    assert list(here.iterdir()) == []


def test_a_budget_out_of_reach_is_refused_with_the_number(here):
    told = run("--size", "1kB")
    assert isinstance(told.exception, InputError)
    assert "size budget of 1 kB is below anything that can be reached" in str(told.exception)
    assert list(here.iterdir()) == []


def test_a_run_that_has_begun_has_no_dry_run(here):
    assert "leave out --resume" in str(run("--resume", "run").exception)
