"""The README does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def python_block(marker):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    return next(block for block in blocks if marker in block)


def run(command, folder):
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_first_recipe_is_short_and_fits_with_the_command_of_the_readme(tmp_path):
    text = python_block("# my_recipe.py")
    assert len(text.splitlines()) < 40
    (tmp_path / "my_recipe.py").write_text(text)
    command = re.search(r"^edgelean fit my_recipe\.py.*$", README.read_text(), re.MULTILINE).group()
    done = run([sys.executable, "-m", *command.split(), "--out", "run"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Fits" in done.stdout
    assert "modelled" in done.stdout
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.slow
def test_training_loop_of_ones_own_lands_on_its_budgets(tmp_path):
    (tmp_path / "loop.py").write_text(python_block("edgelean.attach("))
    done = run([sys.executable, "loop.py"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"latency: met, .* \(modelled\)", done.stdout), done.stdout
    assert re.search(r"energy: met, .* \(modelled\)", done.stdout), done.stdout
    assert (tmp_path / "bundle" / "model.onnx").is_file()


def test_every_command_in_the_readme_exists():
    named = set(re.findall(r"`edgelean (\w+)", README.read_text()))
    done = run(["edgelean", "--help"], README.parent)
    assert named
    assert all(name in done.stdout for name in named)


def test_every_file_that_the_readme_links_exists():
    for link in re.findall(r"\]\(([\w/.-]+)\)", README.read_text()):
        assert (README.parent / link).is_file(), link
