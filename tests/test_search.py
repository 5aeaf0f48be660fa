"""What is tried, and in which groups."""

from __future__ import annotations

import pytest

from edgelean.shrink.search import separating, subsets


@pytest.mark.parametrize("count", [2, 3, 7, 20, 41])
def test_for_any_two_items_a_group_has_the_first_without_the_second(count):
    groups = separating(range(count))
    assert all(
        any(first in group and second not in group for group in groups)
        for first in range(count)
        for second in range(count)
        if first != second
    )


def test_groups_are_few():
    assert len(separating(range(70))) == 8


def test_one_item_is_a_group_of_its_own():
    assert separating(["one"]) == [["one"]]


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_every_subset_comes_once(count):
    found = list(subsets(range(count)))
    assert len(found) == len(set(found)) == 2**count
    assert found[0] == frozenset(range(count))
