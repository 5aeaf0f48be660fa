"""Models that torch.export cannot trace whole: the line to blame is named, and modules that it can trace are cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from edgelean.errors import InputError
from edgelean.shrink import law
from edgelean.shrink.axes import dissect
from edgelean.shrink.cut import apply, tensors_of
from edgelean.shrink.parts_law import reference_of
from edgelean.shrink.prove import halved, prove
from edgelean.shrink.trace import trace
from edgelean.shrink.untraceable import UntraceableError


def perceptron(width, features=6, outputs=6):
    return nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, outputs))


class Deciding(nn.Module):
    """Two perceptrons around a decision; the second is what is left out."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = perceptron(16), perceptron(12), perceptron(20, outputs=3)

    def forward(self, x):
        h = self.first(x)
        if h.sum() > 1e6:
            h = self.second(h)
        return self.head(h)


class Converting(Deciding):
    def forward(self, x):
        for _ in range(int(x.abs().max()) + 1):
            x = x / 2
        return self.head(x)


class Selecting(Deciding):
    def forward(self, x):
        h = self.first(x)
        chosen = h[h[:, 0] > -1e6]
        return self.head(chosen)


class Leaving(Deciding):
    def forward(self, x):
        h = torch.from_numpy(np.tanh(x.numpy()))
        return self.head(h) if h.sum() > -1e6 else h


class Normed(nn.Module):
    """A norm over the width that is cut, called with a keyword, a constant and twice."""

    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(6, 24), nn.LayerNorm(24), nn.Linear(24, 6)

    def forward(self, x, *, gain=None, factor=1.0):
        return x + factor * gain * self.down(self.norm(self.up(x)).relu())


class Looping(nn.Module):
    def __init__(self):
        super().__init__()
        self.block, self.gain = Normed(), nn.Parameter(torch.rand(6) + 0.5)
        nn.init.uniform_(self.block.norm.weight, 0.5, 2.0)

    def forward(self, x):
        for _ in range(2):
            x = self.block(x, gain=self.gain, factor=0.5)
            if x.isnan().any():
                break
        return x


class Tied(nn.Module):
    """The first layer of a perceptron is read outside of it, too."""

    def __init__(self):
        super().__init__()
        self.net, self.free, self.same = perceptron(16), perceptron(12), nn.Linear(6, 16, bias=False)
        self.same.weight = self.net[0].weight

    def forward(self, x):
        y = self.free(self.net(x))
        return y if y.sum() > 1e6 else y + self.same(x).mean(1, keepdim=True)


class Nothing(nn.Module):
    """A parameter of its own and a decision: there is no module to trace."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        return x @ self.weight if x.sum() > 0 else x


BATCH = (4, 6)


class Flat(nn.Module):
    """Every module is a single layer, so no axis begins and ends inside one."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x):
        h = self.first(x)
        return self.second(h) if h.sum() > -1e6 else h


@pytest.mark.parametrize(
    ("model", "code", "what", "advice"),
    [
        (Deciding, "if h.sum() > 1e6:", "decides by the value of a tensor", "torch.where"),
        (Converting, "for _ in range(int(", "Python number", "keep it a tensor"),
        (Selecting, "chosen = h[h[:, 0] > -1e6]", "shape depends on the values", "multiply by a mask"),
        (Leaving, "np.tanh", "numpy", "the function of torch that does the same"),
    ],
)
def test_the_line_to_blame_is_named_with_what_to_do(model, code, what, advice):
    with pytest.raises(UntraceableError) as caught:
        trace(model(), (torch.rand(BATCH),))
    message = str(caught.value)
    assert f'File "{__file__}"' in message
    assert all(words in message for words in (code, what, advice)), message
    assert "test_parts.py:" in caught.value.reason.words()
    assert "/" not in caught.value.reason.words().partition(" (`")[0]


def test_a_number_read_off_a_tensor_and_numpy_are_traced_where_nothing_is_decided():
    class Readable(Deciding):
        def forward(self, x):
            return self.head(self.first(x / float(x.abs().max())))

    assert dissect(Readable(), (torch.rand(BATCH),)).parts is None


def test_nothing_is_written_while_a_model_is_traced_in_vain(capfd):
    dissect(Deciding(), (torch.rand(BATCH),))
    assert capfd.readouterr() == ("", "")


def test_what_can_be_traced_is_cut_and_what_is_not_called_is_named():
    anatomy = dissect(Deciding(), (torch.rand(BATCH),))
    assert {axis.name: axis.size for axis in anatomy.axes.values()} == {"first.0": 16, "head.0": 20}
    assert set(anatomy.parts.calls) == {"first", "head"}
    refused = {refusal.what: refusal.why for refusal in anatomy.refused}
    assert "not called" in refused["second"]
    assert "output of first" in refused["first.2.weight[0]"]
    assert "test_parts.py" in anatomy.parts.words()


@pytest.mark.parametrize("make", [Deciding, Looping, Tied])
def test_a_cut_of_parts_is_the_masked_model(make):
    torch.manual_seed(0)
    model, x = make(), torch.randn(BATCH)
    found = dissect(model, (x,))
    proof = prove(model, found, (x,))
    anatomy = proof.applied(found)
    plan = halved(anatomy)
    assert plan.cuts
    expected = reference_of(model, anatomy, (x,)).outputs(plan)
    apply(model, plan)
    law.check(expected, law.outputs(model, tensors_of(model), (x,)))
    again = proof.applied(dissect(model, (x,), anatomy.parts))
    assert {name: axis.size for name, axis in again.axes.items()} == {cut.axis: cut.after for cut in plan.cuts}
    assert again.structure.macs({}) < anatomy.structure.macs({})
    assert again.structure.macs({}) == anatomy.structure.macs({cut.axis: cut.after for cut in plan.cuts})
    model(x).sum().backward()


def test_the_masked_graph_of_a_part_stands_in_where_statistics_are_touched():
    torch.manual_seed(0)
    model, x = Looping(), torch.randn(BATCH)
    found = dissect(model, (x,))
    anatomy = prove(model, found, (x,)).applied(found)
    assert anatomy.statistics == {"block.up"}
    plan = halved(anatomy)
    naive = law.outputs(model, law.masked(model, plan), (x,))
    with pytest.raises(law.LawError, match="differs from the masked model"):
        law.check(naive, reference_of(model, anatomy, (x,)).outputs(plan))


def test_a_tensor_that_the_rest_of_the_model_has_too_stays_whole():
    anatomy = dissect(Tied(), (torch.rand(BATCH),))
    assert set(anatomy.axes) == {"free.0"}
    assert ("net.0.weight[0]", "it is shared with what is outside of net") in {
        (refusal.what, refusal.why) for refusal in anatomy.refused
    }


def test_code_that_reads_inside_a_part_is_found_when_its_axes_are_proved():
    class Peeking(Deciding):
        def forward(self, x):
            h = super().forward(x)
            return h + (x @ self.first[0].weight.T)[:, :3] + self.first[0].weight[9].sum()

    torch.manual_seed(0)
    model, x = Peeking(), torch.randn(BATCH)
    found = dissect(model, (x,))
    anatomy = prove(model, found, (x,)).applied(found)
    assert set(anatomy.axes) == {"head.0"}
    assert any(refusal.what == "first.0" for refusal in anatomy.refused)


def test_all_tensors_are_counted_also_those_between_the_parts():
    model = Looping()
    counted = dissect(model, (torch.rand(BATCH),)).structure.parameters({})
    assert counted == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("make", [Nothing, Flat])
def test_a_model_without_a_module_to_cut_is_refused_with_the_line(make):
    with pytest.raises(InputError, match="nor a module in it that could be cut") as caught:
        dissect(make(), (torch.rand(BATCH),))
    assert " if " in str(caught.value)
    assert "modules of their own" in str(caught.value)
