"""What the user protects keeps its size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgelean.errors import InputError
from edgelean.recipe import Recipe, checked
from edgelean.shrink.axes import dissect
from edgelean.shrink.protect import PROTECTED, protected


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(Block(), Block(), Block())
        self.head = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))

    def forward(self, x):
        return self.head(self.layers(x))


def axes(*patterns):
    model = Net()
    return protected(dissect(model, (torch.rand(2, 6),)), model, patterns)


@pytest.mark.parametrize(
    ("patterns", "left"),
    [
        ((), {"layers.0.up", "layers.1.up", "layers.2.up", "head.0"}),
        (("head",), {"layers.0.up", "layers.1.up", "layers.2.up"}),
        (("layers.1",), {"layers.0.up", "layers.2.up", "head.0"}),
        (("layers.*.down",), {"head.0"}),
        (("layers.[01].up", "head.2.weight"), {"layers.2.up"}),
        (("*",), set()),
    ],
)
def test_axes_that_touch_a_protected_module_are_left_alone(patterns, left):
    # Width six runs into the head and out of it: where nothing is protected it is an axis, too.
    found = axes(*patterns)
    assert set(found.axes) - {"layers.0.down"} == left
    assert all(refusal.why for refusal in found.refused)


def test_what_is_protected_is_listed_with_the_reason():
    assert ("head.0", PROTECTED) in {(refusal.what, refusal.why) for refusal in axes("head").refused}


def test_a_tensor_is_protected_under_each_of_its_names():
    model = nn.ModuleDict({"embed": nn.Embedding(9, 6), "net": Block(), "out": nn.Linear(6, 9, bias=False)})
    model["out"].weight = model["embed"].weight

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = model

        def forward(self, x):
            return self.parts["out"](self.parts["net"](self.parts["embed"](x)))

    whole, x = Whole(), torch.randint(0, 9, (2, 4))
    found = dissect(whole, (x,))
    width = [name for name, axis in found.axes.items() if ("parts.embed.weight", 1) in axis.slots]
    assert width
    assert not set(width) & set(protected(found, whole, ["parts.out"]).axes)


@pytest.mark.parametrize(
    ("pattern", "hint"), [("haed", "did you mean head"), ("layer.*.up", "did you mean"), ("q", "layers, head")]
)
def test_a_path_that_is_not_there_is_answered_with_the_nearest(pattern, hint):
    with pytest.raises(InputError, match=hint):
        axes(pattern)


def test_a_recipe_takes_paths_from_the_command_line_and_refuses_a_single_word():
    recipe = Recipe(model=Net, data=lambda: (), loss=nn.functional.mse_loss)
    assert recipe.with_settings({"protect": "head, layers.*.up"}).protect == ("head", "layers.*.up")
    with pytest.raises(InputError, match="list of module paths"):
        checked(Recipe(model=Net, data=lambda: (), loss=nn.functional.mse_loss, protect="head"))
