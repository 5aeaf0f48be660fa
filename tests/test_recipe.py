"""Recipes: found by name, file or module, and bad ones refused with one message."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from edgelean.errors import InputError, MissingError
from edgelean.job import ask
from edgelean.nn import LRU, S4D, S5, Mamba, SequenceBlock, SequenceClassifier
from edgelean.recipe import Recipe, accuracy, load_recipe, r2
from edgelean.training.trainer import learning_rate_share, prepare

TINY = Path(__file__).parent / "tiny_recipe.py"
CPU = torch.device("cpu")


def written(tmp_path, text):
    path = tmp_path / "mine.py"
    path.write_text(text)
    return str(path)


def tiny(**changes):
    return Recipe(**{
        "model": lambda: nn.Linear(4, 3), "loss": nn.functional.cross_entropy, "name": "tiny", "batch_size": 4,
        "data": lambda: [torch.utils.data.TensorDataset(torch.randn(8, 4), torch.randint(0, 3, (8,)))] * 3, **changes,
    })  # fmt: skip


def test_a_file_gives_a_recipe_named_after_it():
    assert load_recipe(str(TINY)).name == "tiny_recipe"


def test_a_built_in_and_an_importable_name_give_the_same_recipe():
    assert load_recipe("digits") == load_recipe("edgelean.recipes.digits:recipe")


def test_an_unknown_name_is_answered_with_the_nearest_ones():
    with pytest.raises(MissingError, match="did you mean digits"):
        load_recipe("digit")


def test_an_import_error_shows_the_users_own_frames_and_no_others(tmp_path):
    path = written(tmp_path, "import json\n\ndef helper():\n    return json.loads('{')\n\nrecipe = helper()\n")
    with pytest.raises(InputError, match="cannot be imported: JSONDecodeError") as caught:
        load_recipe(path)
    assert "mine.py" in str(caught.value)
    assert "line 4, in helper" in str(caught.value)
    assert "json/__init__" not in str(caught.value)
    assert "edgelean/recipe.py" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (", "SyntaxError"),
        ("", "has no 'recipe'"),
        ("recipe = 3", "is a int, it has to be an edgelean.Recipe"),
        (
            "import edgelean\nrecipe = edgelean.Recipe(model=1, data=print, loss=print)",
            "model of the recipe has to be a function",
        ),
        ("import edgelean\nrecipe = edgelean.Recipe(model=print, data=print, loss=print, epochs=0)", "epochs is 0"),
        (
            "import edgelean\nrecipe = edgelean.Recipe(model=print, data=print, loss=print, metric='f7')",
            "metric 'f7' is not known",
        ),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        load_recipe(written(tmp_path, text))


def test_settings_replace_hyper_parameters():
    recipe = tiny().with_settings({"epochs": "3", "learning_rate": "0.5", "compare": "true"})
    assert (recipe.epochs, recipe.learning_rate, recipe.compare) == (3, 0.5, True)


def test_settings_of_a_run_reach_the_recipe_and_the_controller_and_are_remembered():
    asked = ask("digits", "raspberry-pi-5", settings={"epochs": "3", "events": "4", "hankel_tolerance": "0.02"})
    assert asked.recipe.epochs == 3
    assert (asked.profile.control.events, asked.profile.control.hankel_tolerance) == (4, 0.02)
    assert asked.asked["settings"] == {"epochs": "3"}
    assert asked.asked["profile"]["control"]["hankel_tolerance"] == 0.02
    with pytest.raises(InputError, match="edgelean profiles show"):
        ask("digits", "raspberry-pi-5", settings={"speed": "9"})


@pytest.mark.parametrize("pair", [("epochs", "many"), ("compare", "perhaps"), ("model", "big"), ("speed", "1")])
def test_a_setting_that_cannot_be_is_refused(pair):
    with pytest.raises(InputError, match="--set"):
        tiny().with_settings(dict([pair]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": lambda: 3}, "has to give a torch.nn.Module"),
        ({"model": lambda: 1 / 0}, "ZeroDivisionError"),
        (
            {"model": lambda: nn.Linear(5, 3)},
            r"fails on a batch.* wants \[\.\.\., 5\] of float32 and got \[4, 4\]",
        ),
        ({"data": lambda: (1, 2)}, "it gave 2 parts"),
        ({"data": lambda: [[1]] * 3}, "instead of a Dataset or DataLoader"),
        ({"data": lambda: [torch.utils.data.TensorDataset(torch.randn(0, 4))] * 3}, "is empty"),
        ({"data": lambda: [torch.utils.data.TensorDataset(torch.randn(8, 4))] * 3}, r"has to yield \(input, target\)"),
        ({"loss": lambda a, b: a}, "has to give one number"),
        ({"loss": lambda a, b: a.nothing}, "AttributeError"),
    ],
)
def test_a_recipe_whose_parts_do_not_fit_is_refused_before_training(changes, message):
    with pytest.raises(InputError, match=message):
        prepare(tiny(**changes), 0, CPU)


@pytest.mark.parametrize("split", [0, 1, 2])
def test_nan_in_any_split_is_refused(split):
    def data():
        inputs = [torch.randn(8, 4) for _ in range(3)]
        inputs[split][5, 2] = float("nan")
        return [torch.utils.data.TensorDataset(x, torch.randint(0, 3, (8,))) for x in inputs]

    with pytest.raises(InputError, match=f"the {('train', 'validation', 'test')[split]} data holds NaN"):
        prepare(tiny(data=data), 0, CPU)


def test_a_test_split_of_another_length_is_refused_before_training():
    """A model is exported for sequences of one length; training may see others."""

    def data(*lengths):
        return [torch.utils.data.TensorDataset(torch.randn(8, n, 1), torch.randint(0, 3, (8,))) for n in lengths]

    def model():
        return SequenceClassifier(nn.Linear(1, 4), [SequenceBlock(LRU(4, 2))], nn.Linear(4, 3))

    prepare(tiny(model=model, data=lambda: data(6, 9, 9)), 0, CPU)
    with pytest.raises(InputError, match=r"the test split has samples of the shape \[12, 1\].* has \[9, 1\]"):
        prepare(tiny(model=model, data=lambda: data(9, 9, 12)), 0, CPU)


@pytest.mark.parametrize(
    ("layer", "spoil", "message"),
    [
        (lambda: S5(4, 8), lambda layer: layer.A_re[2].fill_(0.5), "blocks.0.layer: state 2 has a pole of modulus 1"),
        (lambda: LRU(4, 8), lambda layer: layer.nu_log[3].fill_(math.nan), "blocks.0.layer: state 3 .*not finite"),
        (lambda: S4D(4, 8), lambda layer: layer.A_im[1, 2].fill_(math.nan), "state 2 of feature 1 .*not finite"),
        (lambda: Mamba(4, 8), lambda layer: layer.A_log[1, 5].fill_(math.nan), "blocks.0.layer: state 5 has NaN"),
    ],
)
def test_a_state_that_is_unstable_or_missing_is_named_before_training(layer, spoil, message):
    def model():
        whole = SequenceClassifier(nn.Linear(4, 4), [SequenceBlock(layer())], nn.Linear(4, 3))
        with torch.no_grad():
            spoil(whole.blocks[0].layer)
        return whole

    with pytest.raises(InputError, match=message):
        prepare(tiny(model=model), 0, CPU)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: S5(4, 3), "d_state a multiple of 2 .conjugate pairs.* d_state=3"),
        (lambda: S4D(4, 1), "an even d_state of at least 2 .conjugate pairs.* d_state=1"),
        (lambda: LRU(4, 0), "states of at least 1, found width=4, states=0"),
        (lambda: Mamba(4, 0), "sizes of at least 1 .* d_state=0"),
    ],
)
def test_a_layer_with_too_few_states_is_refused_in_one_sentence(layer, message):
    with pytest.raises(InputError, match=message) as refusal:
        prepare(tiny(model=lambda: nn.Sequential(layer())), 0, CPU)
    assert "Traceback" not in str(refusal.value)


def test_trying_a_batch_leaves_no_trace_in_the_model():
    recipe = tiny(model=lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    session = prepare(recipe, 0, CPU)
    assert session.model[1].num_batches_tracked == 0
    assert session.model.training


def test_equal_seeds_give_equal_models():
    a, b, c = (prepare(tiny(), seed, CPU).model.weight for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_learning_rate_rises_then_falls_to_zero():
    shares = [learning_rate_share(step, 100) for step in range(101)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(later <= earlier for earlier, later in itertools.pairwise(shares[5:]))
    assert shares[100] == pytest.approx(0)


def test_metrics_know_a_perfect_and_a_useless_answer():
    y = torch.tensor([0, 1, 2, 1])
    assert accuracy(nn.functional.one_hot(y).float(), y) == 1
    assert accuracy(torch.tensor([[1.0, 0, 0]]).expand(4, 3), y) == 0.25
    target = torch.randn(50, 1)
    assert r2(target, target) == 1
    assert r2(target.mean().expand(50, 1), target) == pytest.approx(0, abs=1e-6)
