"""A plan for the untrained model on the console."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgelean.cli.tables import print_table
from edgelean.quantity import amount, word
from edgelean.report import numbers

if TYPE_CHECKING:
    from rich.console import Console

    from edgelean.preview import Outlook, Preview


def print_preview(console: Console, found: Preview) -> None:
    """Print what would go, what that is predicted to bring, and what can be reached at all."""
    from rich.text import Text

    console.print(Text(f"{found.recipe} on {found.board}, profile {found.profile}: a plan, nothing was trained"))
    console.print()
    columns = ("budget", "limit", "full-size", "planned", "least", "price of 1 %", "provenance")
    print_table("", columns, [_quantity_row(one) for one in found.quantities], firm=6)
    going = [axis for axis in found.axes if axis[3] < axis[2]]
    rows = [
        (name, kind, str(before), str(after), numbers.percent(after / before)) for name, kind, before, after in going
    ]
    print_table("What would go", ("axis", "of", "units", "left", ""), rows, firm=5)
    before, after = found.parameters
    stay = len(found.axes) - len(going)
    for sentence in (
        "" if found.feasible else "The plan does not hold every budget: there is not enough that saves anything here.",
        f"{before:,} parameters become {after:,}; {stay} of {len(found.axes)} axes stay as they are, "
        f"{len(found.refused)} dimensions are left alone (`edgelean axes` names them).",
        "Which units go is decided while the network learns; prices are those of the untrained one.",
        *found.notes,
    ):
        if sentence:
            console.print(Text(sentence))


def _quantity_row(one: Outlook) -> tuple[str, ...]:
    limit, full, planned, least = numbers.amounts((one.limit, one.full_size, one.planned, one.least), one.unit)
    share = 0.01 * one.limit
    price = f"{numbers.number(one.price * share, 2)} nats for {amount(share, one.unit, 2)}" if one.price else "-"
    words = dict.fromkeys((str(one.provenance), f"least {one.least_provenance}"))
    told = str(one.provenance) if one.provenance == one.least_provenance else ", ".join(words)
    return word(one.quantity), limit, full, planned, least, price, told
