"""The CO2 that a kilowatt-hour stands for, compared with codecarbon itself."""

import importlib.util
from types import SimpleNamespace

import pytest

from edgelean.electricity import INSTEAD, countries, electricity, find_country
from edgelean.errors import InputError


@pytest.mark.parametrize("code", ["DEU", "FRA", "USA", "IND", "BRA", "ZAF"])
def test_country_has_the_intensity_that_codecarbon_computes_with(code):
    from codecarbon.core.emissions import Emissions
    from codecarbon.core.units import Energy
    from codecarbon.external.geography import GeoMetadata
    from codecarbon.input import DataSource

    where = GeoMetadata(country_iso_code=code, country_name=find_country(code).name)
    kilograms = Emissions(DataSource()).get_private_infra_emissions(Energy.from_energy(kWh=1.0), where)
    assert electricity(code, None).g_per_kwh == pytest.approx(1000 * kilograms)


def test_words_name_the_country_the_year_and_the_table():
    words = electricity("DEU", None).words
    assert words.startswith("381 g CO₂e per kWh, the mean of Germany in 2023 (table of codecarbon ")


def test_number_that_is_stated_goes_before_everything():
    assert electricity(None, 31.5).g_per_kwh == 31.5
    assert electricity(None, 0.0).g_per_kwh == 0
    assert electricity(None, 31.5).words == "31.5 g CO₂e per kWh, as the profile states"


def test_without_a_country_it_is_the_world_and_the_words_say_that_nobody_named_one():
    assert electricity(None, None).g_per_kwh == 475
    assert "the mean of the world" in electricity(None, None).words
    assert "because the profile names neither a country nor a number" in electricity(None, None).words


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("Germany", "did you mean DEU (Germany)?"),
        ("deu", "did you mean DEU (Germany)?"),
        ("united kingdon", "did you mean GBR (United Kingdom)"),
        ("UK", 'write its code of three letters (ISO 3166), such as "DEU"'),
        ("", "three letters"),
        ("Atlantis", INSTEAD),
    ],
)
def test_unknown_country_is_answered_with_near_codes(wanted, said):
    with pytest.raises(InputError) as caught:
        find_country(wanted)
    assert f"there is no country {wanted!r}" in str(caught.value)
    assert said in str(caught.value)


def test_country_without_a_number_in_the_table_is_not_taken_to_emit_nothing():
    assert len(countries()) > 200
    assert all(country.g_per_kwh > 0 for country in countries().values())
    with pytest.raises(InputError):
        find_country("CAF")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A codecarbon in a folder of its own, without its table."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    countries.cache_clear()
    yield tmp_path
    countries.cache_clear()


@pytest.mark.parametrize("text", [None, "not json", '{"DEU": {"carbon_intensity": 3}}', "[]"])
def test_codecarbon_whose_table_is_gone_or_different_is_said_with_what_to_do(package, text):
    if text is not None:
        table = package / "data/private_infra/global_energy_mix.json"
        table.parent.mkdir(parents=True)
        table.write_text(text)
    with pytest.raises(InputError, match="has no table of countries") as caught:
        electricity("DEU", None)
    assert INSTEAD in str(caught.value)
    assert electricity(None, None).g_per_kwh == 475


def test_missing_codecarbon_is_said_with_what_to_do(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    countries.cache_clear()
    with pytest.raises(InputError, match="codecarbon, which is not installed"):
        electricity("DEU", None)
    countries.cache_clear()
