"""The recipe that reads digits pixel by pixel."""

from __future__ import annotations

import torch

from edgelean.recipe import accuracy, load_recipe
from edgelean.recipes._digits_data import digits_split
from edgelean.recipes.digits_sequence import sequence_net
from edgelean.shrink.balance import measured_gramians, truncate


def test_the_recipe_is_built_in():
    recipe = load_recipe("digits-sequence")
    assert recipe.name == "digits-sequence"
    assert recipe.model()(torch.zeros(2, 64, 1)).shape == (2, 10)


def test_the_pixels_come_row_by_row_in_the_split_of_the_other_digits():
    data = load_recipe("digits-sequence").data()
    for split, (images, labels) in zip((data.train, data.validation, data.test), digits_split(), strict=True):
        pixels, targets = split.tensors
        assert torch.equal(targets, labels)
        assert torch.equal(pixels[:, 8 * 3 + 5, 0], images[:, 3, 5])


def test_most_of_the_arithmetic_belongs_to_the_states():
    recipe = load_recipe("digits-sequence")
    sizes = [sum(p.numel() for p in model.parameters()) for model in (recipe.model(), sequence_net(states=16))]
    assert sizes[1] < 0.2 * sizes[0]


def trained(steps):
    """A small net of the recipe after a few steps, and its training data."""
    torch.manual_seed(1)
    x, y = load_recipe("digits-sequence").data().train.tensors
    model = sequence_net(width=16, states=48)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        chosen = torch.randint(len(x), (32,))
        loss = torch.nn.functional.cross_entropy(model(x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval(), x, y


def test_a_trained_net_keeps_what_it_learned_when_the_truncation_knows_its_inputs():
    model, x, y = trained(200)
    layer = model.blocks[0].layer
    with torch.no_grad():
        before = accuracy(model(x), y)
        full, seen = layer.system(), model.blocks[0].norm(model.encoder(x[:32]))
        layer.load_system(truncate(full, 12, measured_gramians(full, seen)).system)
        informed = accuracy(model(x), y)
        layer.load_system(truncate(full, 12).system)
        blind = accuracy(model(x), y)
    assert before > 0.6
    assert informed > before - 0.05
    assert informed > blind + 0.1
