"""The same promises on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from zoo import make

import edgelean
from edgelean.shrink import law
from edgelean.shrink.axes import dissect
from edgelean.shrink.cut import apply, tensors_of
from edgelean.shrink.plan import make_plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU on this machine"),
]


def test_nvml_counts_the_energy_of_a_busy_gpu():
    from edgelean.sensors.nvml import open_nvml

    a = torch.randn(4096, 4096, device="cuda")

    def work():
        a @ a
        torch.cuda.synchronize()

    busy = open_nvml().over(work, 2.0)
    assert busy.calls > 0
    assert 10 < busy.watts < 2000
    assert "NVML" in busy.method


def test_cut_on_the_gpu_obeys_the_law_and_training_goes_on():
    model, example = make("residual")
    model, example = model.cuda(), tuple(x.cuda() for x in example)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(*example).square().mean().backward()
    optimizer.step()
    anatomy = dissect(model, example)
    keep = {axis.name: axis.size - 3 for axis in anatomy.axes.values()}
    plan = make_plan(anatomy, keep, {name: range(3) for name in keep}, 0.0)
    expected = law.outputs(model, law.masked(model, plan), example)
    apply(model, plan, optimizer)
    assert law.check(expected, law.outputs(model, tensors_of(model), example)) < 1e-9
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(*example), torch.zeros(4, dtype=torch.long, device="cuda")).backward()
    optimizer.step()
    assert all(parameter.is_cuda for parameter in model.parameters())


def test_fit_on_the_gpu_meets_its_budgets(tmp_path):
    recipe = str(Path(__file__).parent / "tiny_recipe.py")
    report = edgelean.fit(recipe, "raspberry-pi-5", latency="50%", energy="60%", out=tmp_path / "run")
    assert report.exit_code == 0
