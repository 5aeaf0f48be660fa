"""What a kilowatt-hour stands for in grams of CO2, from the table of countries that codecarbon brings along.

The table is a file of that package, read as it lies: no network, and no import of codecarbon, which takes a second. A
country is never guessed. Without one, the mean of the world is used, and the words say so.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import NamedTuple

from edgelean.errors import InputError

WORLD_G_PER_KWH = 475.0
"""Mean of the world in 2018 (IEA, Global Energy and CO2 Status Report 2019)."""
TABLE = "data/private_infra/global_energy_mix.json"
INSTEAD = "give carbon_g_per_kwh, the number that your supplier states"


class Country(NamedTuple):
    """One line of the table: name, mean grams of CO2 equivalent per kWh, and the year that it is of."""

    name: str
    g_per_kwh: float
    year: int


@dataclass(frozen=True)
class Electricity:
    """The carbon intensity of some electricity.

    Attributes
    ----------
    g_per_kwh
        Grams of CO2 equivalent per kWh.
    words
        Where the number comes from, in words that can stand in a report.
    """

    g_per_kwh: float
    words: str


def electricity(country: str | None, g_per_kwh: float | None) -> Electricity:
    """Return the electricity of a country, or with a stated number, or where neither is given that of the world.

    Parameters
    ----------
    country
        ISO 3166 code of three letters.
    g_per_kwh
        Grams of CO2 equivalent per kWh; goes before the country.

    Raises
    ------
    InputError
        The table has no such country; the message has near codes.
    """
    if g_per_kwh is not None:
        return Electricity(g_per_kwh, f"{g_per_kwh:g} g CO₂e per kWh, as the profile states")
    if country is None:
        words = "the mean of the world in 2018 (IEA), because the profile names neither a country nor a number"
        return Electricity(WORLD_G_PER_KWH, f"{WORLD_G_PER_KWH:g} g CO₂e per kWh, {words}")
    found = find_country(country)
    source = f"table of codecarbon {importlib.metadata.version('codecarbon')}"
    words = f"{found.g_per_kwh:.0f} g CO₂e per kWh, the mean of {found.name} in {found.year} ({source})"
    return Electricity(found.g_per_kwh, words)


def find_country(code: str) -> Country:
    """Return the line of the table for an ISO 3166 code of three letters, in capitals.

    Raises
    ------
    InputError
        There is no such line; the message has near codes, also for a name.
    """
    table = countries()
    if code not in table:
        raise InputError(f"there is no country {code!r} in the table of codecarbon: {_nearest(code, table)}")
    return table[code]


@cache
def countries() -> Mapping[str, Country]:
    """Return the table by ISO 3166 code; countries with an intensity of 0 are gaps in the data and left out.

    Raises
    ------
    InputError
        This codecarbon has no such table.
    """
    package = importlib.util.find_spec("codecarbon")
    if package is None or package.origin is None:
        raise InputError(f"the table of countries is part of codecarbon, which is not installed: {INSTEAD}")
    file = Path(package.origin).parent / TABLE
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        known = {
            code: Country(str(row["country_name"]), float(row["carbon_intensity"]), int(row["year"]))
            for code, row in rows.items()
            if row.get("carbon_intensity")
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        version = importlib.metadata.version("codecarbon")
        raise InputError(f"codecarbon {version} has no table of countries in {file} ({error}): {INSTEAD}") from error
    return known


def _nearest(wanted: str, table: Mapping[str, Country]) -> str:
    """Return the codes that may be meant, by code or by name of the country."""
    by_name = {country.name.upper(): code for code, country in table.items()}
    # What is near to a code of two letters is any country: UK is not UKR, which is Ukraine.
    near = get_close_matches(wanted.upper(), [*by_name, *table], n=3, cutoff=0.7) if len(wanted) > 2 else []
    codes = dict.fromkeys(by_name.get(name, name) for name in near)
    if not codes:
        return f'write its code of three letters (ISO 3166), such as "DEU", or {INSTEAD}'
    return f"did you mean {' or '.join(f'{code} ({table[code].name})' for code in codes)}?"
