"""Blocks, directions, heads and step forms around the sequence layers, and all of it in onnxruntime."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from edgelean.errors import InputError
from edgelean.nn import (
    LRU,
    S4D,
    S5,
    Bidirectional,
    Mamba,
    SequenceBlock,
    SequenceClassifier,
    SequenceRegressor,
    StepForm,
)
from edgelean.shrink import law
from edgelean.shrink.axes import dissect
from edgelean.shrink.cut import apply
from edgelean.shrink.plan import make_plan
from edgelean.shrink.trace import trace

WIDTH = 4


def layers():
    return [LRU(WIDTH, 5), S5(WIDTH, 6), S4D(WIDTH, 6), Mamba(WIDTH, 3)]


def classifier(pooling="mean", blocks=None):
    torch.manual_seed(0)
    head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3))
    built = [SequenceBlock(layer) for layer in layers()] if blocks is None else blocks
    return SequenceClassifier(nn.Linear(2, WIDTH), built, head, pooling)


def stream(model, inputs):
    """The answers after each step."""
    state, answers = None, []
    for u in inputs.unbind(1):
        answer, state = model.step(u, state)
        answers.append(answer)
    return torch.stack(answers, 1)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@settings(max_examples=6, deadline=None)
@given(time=st.integers(1, 40))
def test_a_stream_has_after_every_step_the_answer_for_what_came_so_far(pooling, time):
    model, inputs = classifier(pooling).double(), torch.randn(2, time, 2, dtype=torch.float64)
    answers = stream(model, inputs)
    for so_far in {1, time // 2 + 1, time}:
        torch.testing.assert_close(answers[:, so_far - 1], model(inputs[:, :so_far]))


def test_a_regressor_answers_at_every_step():
    model = SequenceRegressor(nn.Linear(2, WIDTH), [SequenceBlock(LRU(WIDTH, 5))], nn.Linear(WIDTH, 1)).double()
    inputs = torch.randn(2, 9, 2, dtype=torch.float64)
    assert model(inputs).shape == (2, 9, 1)
    torch.testing.assert_close(stream(model, inputs), model(inputs))


def test_an_embedding_may_be_the_encoder():
    model = SequenceClassifier(nn.Embedding(7, WIDTH), [SequenceBlock(S5(WIDTH, 6))], nn.Linear(WIDTH, 3), "last")
    tokens = torch.randint(0, 7, (2, 12))
    torch.testing.assert_close(stream(model, tokens)[:, -1], model(tokens))


def test_a_block_is_norm_layer_activation_gate_and_sum():
    torch.manual_seed(0)
    block, x = SequenceBlock(LRU(WIDTH, 5)), torch.randn(2, 9, WIDTH)
    inner = nn.functional.gelu(block.layer(block.norm(x)))
    torch.testing.assert_close(block(x), x + block.value(inner) * torch.sigmoid(block.gate(inner)))


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    block, x = SequenceBlock(LRU(WIDTH, 5), dropout=0.5), torch.randn(2, 9, WIDTH)
    assert not torch.equal(block(x), block(x))
    block.eval()
    assert torch.equal(block(x), block(x))


@pytest.mark.parametrize("merge", ["add", "concat"])
def test_the_second_direction_reads_from_the_end(merge):
    torch.manual_seed(0)
    both, x = Bidirectional(LRU(WIDTH, 5), S4D(WIDTH, 6), merge), torch.randn(2, 9, WIDTH)
    reverse = list(range(8, -1, -1))
    ahead, back = both.ahead(x), both.back(x[:, reverse])[:, reverse]
    expected = torch.cat([ahead, back], -1) if merge == "concat" else ahead + back
    torch.testing.assert_close(both(x), expected)
    assert SequenceBlock(both)(x).shape == x.shape


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: classifier(blocks=[SequenceBlock(both_ways())]).step(torch.randn(1, 2)), "bidirectional layer reads"),
        (lambda: StepForm(SequenceBlock(both_ways()), torch.randn(1, WIDTH)), "bidirectional layer reads"),
        (lambda: classifier(blocks=[nn.Linear(WIDTH, WIDTH)]).step(torch.randn(1, 2)), "Linear has no step form"),
        (lambda: classifier("none"), "a SequenceClassifier pools by mean or last, not 'none'"),
        (lambda: Bidirectional(LRU(3, 4), LRU(4, 4)), "one width, found 3 and 4"),
        (lambda: Bidirectional(LRU(3, 4), LRU(3, 4), "mean"), "merged by add or concat"),
        (lambda: SequenceBlock(nn.Linear(3, 3)), "Linear has no width"),
    ],
)
def test_what_cannot_be_is_refused(attempt, message):
    with pytest.raises(InputError, match=message):
        attempt()


def both_ways():
    return Bidirectional(LRU(WIDTH, 5), LRU(WIDTH, 5))


def test_the_step_form_remembers_everything_in_one_tensor():
    model, inputs = classifier().eval(), torch.randn(3, 12, 2)
    form = StepForm(model, inputs[:, 0])
    state = form.start(inputs[:, 0])
    # LRU and S5 two per state, S4D two per feature and state, Mamba its window and states, then sum and count.
    assert state.shape == (3, 2 * 5 + 2 * 3 + 2 * 4 * 3 + 8 * 3 + 8 * 3 + 4 + 1)
    for u, expected in zip(inputs.unbind(1), stream(model, inputs).unbind(1), strict=True):
        answer, state = form(u, state)
        torch.testing.assert_close(answer, expected)


@pytest.mark.parametrize("layer", layers(), ids=lambda layer: type(layer).__name__)
def test_states_are_an_axis_of_the_traced_graph(layer):
    model = SequenceClassifier(nn.Linear(2, WIDTH), [SequenceBlock(layer)], nn.Linear(WIDTH, 3))
    axes = dissect(model, (torch.randn(2, 21, 2),)).axes
    found = [axis for axis in axes.values() if axis.size == layer.states and axis.name.startswith("blocks.0.layer")]
    assert len(found) == 1
    names = {name.removeprefix("blocks.0.layer."): dim for name, dim in found[0].slots}
    wanted = {"A_log": 1, "x_proj.weight": 0} if isinstance(layer, Mamba) else layer.state_dimensions
    assert names == dict(wanted)


@pytest.mark.parametrize("layer", layers()[1:], ids=lambda layer: type(layer).__name__)
def test_a_layer_without_some_states_and_features_is_the_layer_with_those_masked(layer):
    model = SequenceClassifier(nn.Linear(2, WIDTH), [SequenceBlock(layer)], nn.Linear(WIDTH, 3)).double().eval()
    probe = (torch.randn(2, 21, 2, dtype=torch.float64),)
    anatomy = dissect(model, probe)
    sizes = {name: axis.size for name, axis in anatomy.axes.items() if axis.kind == "channels"}
    units = {name: range(size) for name, size in sizes.items()}
    plan = make_plan(anatomy, {name: size // 2 + 1 for name, size in sizes.items()}, units, 0.0)
    with torch.no_grad():
        masked = law.Reference(model, trace(model, probe), probe).outputs(plan)
        before = layer.states
        apply(model, plan)
        states = before // 2 + 1 if isinstance(layer, Mamba) else before  # the others' are truncated, not masked
        assert (layer.width, layer.states) == (WIDTH // 2 + 1, states)
        assert law.deviation(masked, [model(*probe)]) < 1e-12
