"""edgelean: train a PyTorch model and make it smaller while it learns, until it fits its budgets."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edgelean.attachment import attach
    from edgelean.board import Board
    from edgelean.budget import Budget
    from edgelean.errors import EdgeleanError
    from edgelean.measuring import measure
    from edgelean.pipeline import fit, load
    from edgelean.profile import Profile
    from edgelean.reading import Reading
    from edgelean.recipe import Recipe
    from edgelean.report.model import Report
    from edgelean.shrink.plan import Plan

__all__ = [
    "Board",
    "Budget",
    "EdgeleanError",
    "Plan",
    "Profile",
    "Reading",
    "Recipe",
    "Report",
    "attach",
    "fit",
    "load",
    "measure",
]

_HOMES = {
    "Board": "board",
    "Budget": "budget",
    "EdgeleanError": "errors",
    "Plan": "shrink.plan",
    "Profile": "profile",
    "Reading": "reading",
    "Recipe": "recipe",
    "Report": "report.model",
    "attach": "attachment",
    "fit": "pipeline",
    "load": "pipeline",
    "measure": "measuring",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``import edgelean`` alone costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'edgelean' has no attribute {name!r}")
    return getattr(import_module(f"edgelean.{_HOMES[name]}"), name)
