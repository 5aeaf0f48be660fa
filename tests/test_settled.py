import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from edgelean.control.settled import rank_correlation
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
