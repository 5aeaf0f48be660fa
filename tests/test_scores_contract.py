"""Every score that comes with edgelean holds the contract, with batch norm and without."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from edgelean.errors import InputError
from edgelean.profile import ScoreName
from edgelean.shrink.scores import SCORES, open_score
from edgelean.testing.score_contract import Bench, ScoreContract


def with_batch_norm():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 10, 3), nn.BatchNorm2d(10), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(10, 5),
    )  # fmt: skip


def without_batch_norm():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 12), nn.GELU(), nn.Linear(12, 5))


@pytest.fixture(params=SCORES)
def name(request):
    return request.param


class TestScores(ScoreContract):
    @pytest.fixture(params=["batch norm", "no norm"])
    def bench(self, request, name):
        torch.manual_seed(3)
        places = ("3", "3", "6", "4") if request.param == "batch norm" else ("1", "1", "3", None)
        model = with_batch_norm() if request.param == "batch norm" else without_batch_norm()
        axis, make, read, norm = places
        inputs, targets = torch.randn(48, 1, 8, 8), torch.randint(0, 5, (48,))
        permutes = name != "random"
        return Bench(lambda seed: open_score(name, seed), model, inputs, targets, axis, make, read, norm, permutes)


def test_profile_offers_all_scores_that_there_are():
    assert set(get_args(ScoreName)) == set(SCORES)


def test_unknown_score_is_refused_with_the_nearest_name():
    with pytest.raises(InputError, match="did you mean 'magnitude'"):
        open_score("magnitud", 0)
