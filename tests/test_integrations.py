"""What holds for every trainer that the loop is put into."""

from __future__ import annotations

import importlib
import sys

import pytest

from edgelean.errors import MissingError


@pytest.mark.parametrize(("package", "used"), [("lightning", "lightning.pytorch"), ("transformers", "transformers")])
def test_missing_trainer_is_named_with_how_to_get_it(monkeypatch, package, used):
    monkeypatch.setitem(sys.modules, used, None)  # as where it is not installed
    monkeypatch.delitem(sys.modules, f"edgelean.integrations.{package}", raising=False)
    with pytest.raises(MissingError, match=rf"pip install 'edgelean\[{package}\]'"):
        importlib.import_module(f"edgelean.integrations.{package}")
