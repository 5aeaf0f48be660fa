"""The closed loop under a real torchrun: two processes on one machine, started by a script of a user's."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import edgelean
from edgelean.errors import InputError
from edgelean.report import read_report

SCRIPT = """
import sys
import torch
from torch import distributed as dist, nn
import edgelean
from edgelean.profile import load_profile

dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(12, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 5))
model = nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
torch.manual_seed(1 + rank)
x = torch.randn(64, 12)
y = x[:, :5].argmax(1)

def accuracy(outputs, targets):
    return float((outputs.argmax(1) == targets).double().mean())

profile = load_profile("raspberry-pi-5").with_control({"score": "magnitude", "events": "2"})
lean = edgelean.attach(
    model, optimizer, x[:8], profile, latency="70%", energy="70%", steps=16,
    validate=lambda: float(rank == 0), out=sys.argv[1],
)
for _ in range(16):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    lean.step()
delivery = lean.finish(x, y, accuracy)
told = {
    "rank": rank,
    "verdicts": [verdict.outcome for verdict in delivery.verdicts],
    "shapes": [list(p.shape) for p in model.parameters()],
    "sum": sum(float(p.double().sum()) for p in model.parameters()),
    "steps": [event["step"] for event in lean.events if event["event"] == "cut"],
    "report": lean.report.lean.parameters,
}
import json
from pathlib import Path
Path(f"{sys.argv[1]}-{rank}.json").write_text(json.dumps(told))
dist.destroy_process_group()
"""


def torchrun(folder, *command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *command]
    return subprocess.run(start, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_all_processes_cut_alike_and_the_first_one_delivers(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    done = torchrun(tmp_path, "train.py", "run")
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"run-{rank}.json").read_text()) for rank in (0, 1))
    assert first.pop("rank") != second.pop("rank")
    assert first == second
    assert first["steps"]
    assert first["verdicts"] == ["met", "met"]
    report = read_report(tmp_path / "run")
    assert report.lean.parameters == first["report"]
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "cut"] == first["steps"]
    assert sum(event["event"] == "end" for event in events) == 1


def test_fit_under_torchrun_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as torchrun sets it
    with pytest.raises(InputError, match=r"fit trains in one process, torchrun started 2.*edgelean\.attach"):
        edgelean.fit("digits", "raspberry-pi-5", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
