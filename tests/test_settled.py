import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from edgelean.control.settled import agreement, rank_correlation
from edgelean.errors import InputError

scores = st.integers(-4, 4).map(float)


@given(st.lists(st.tuples(scores, scores), min_size=3, max_size=30))
def test_the_rank_correlation_is_spearmans_with_ties(pairs):
    previous, current = map(list, zip(*pairs, strict=True))
    if len(set(previous)) > 1 and len(set(current)) > 1:
        assert rank_correlation(previous, current) == pytest.approx(spearmanr(previous, current).statistic)


def test_only_the_order_counts():
    assert rank_correlation([1, 2, 3], [10, 1000, 1e9]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


def test_scores_without_an_order_agree_only_with_each_other():
    assert rank_correlation([1, 1, 1], [5, 5, 5]) == 1
    assert rank_correlation([1, 1, 1], [1, 2, 3]) == 0


def test_one_swap_of_neighbours_matters_less_than_one_of_the_ends():
    assert rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 5, 4]) == pytest.approx(0.9)
    assert rank_correlation([1, 2, 3, 4, 5], [5, 2, 3, 4, 1]) == pytest.approx(-0.6)


@pytest.mark.parametrize(("previous", "current"), [([], []), ([1.0], [1.0, 2.0]), ([1.0, float("nan")], [1.0, 2.0])])
def test_vectors_that_cannot_be_compared_are_refused(previous, current):
    with pytest.raises(InputError, match="score"):
        rank_correlation(previous, current)


def test_each_axis_is_compared_on_its_own_and_counts_by_its_units():
    before = {"narrow": (1.0, 2.0), "wide": (100.0, 200.0, 300.0, 400.0)}
    after = {"narrow": (2.0, 1.0), "wide": (100.0, 200.0, 300.0, 400.0)}
    assert agreement(before, after) == pytest.approx((-1 * 2 + 1 * 4) / 6)
    assert rank_correlation([*before["narrow"], *before["wide"]], [*after["narrow"], *after["wide"]]) > 0.9


def test_axes_that_are_new_or_were_cut_or_have_one_unit_tell_nothing():
    assert agreement({}, {"a": (1.0, 2.0)}) is None
    assert agreement({"a": (1.0, 2.0, 3.0), "b": (1.0,)}, {"a": (1.0, 2.0), "b": (2.0,)}) is None
    assert agreement({"a": (1.0, 2.0, 3.0), "c": (1.0, 2.0)}, {"a": (1.0, 2.0), "c": (5.0, 6.0)}) == 1
