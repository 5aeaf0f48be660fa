"""What each step past the published reduction is worth, right after a cut, without any training.

Linear recurrent layers are trained on the bundled digits, read pixel by pixel, and then cut to several numbers of
states. Each rung adds one thing to the rung before:

published      the complex system is balanced for white noise, as in "In-training compression of state space models"
flipped        each mode is replaced by its conjugate if its phase is negative, which changes nothing for real outputs
real map       the real system of twice the order is balanced
input          ... for the inputs that the layer really reads
refit          C by least squares on recorded inputs, after B and C in closed form where that is nearer on them
guard          of this and of the best modes as they are, refitted likewise, the one that is nearer on recorded inputs

The error is the root mean square difference of the layer's outputs, relative to them, on sequences that took no part.
The same for layers as they are initialised, with inputs that are coloured (first order, pole 0.95) or white. A rung may
not be worse than the one before in the geometric mean over a source. The first three rungs know nothing of the inputs
and are judged on white ones only; there "input" knows a finite record instead of the truth, and is not judged.
The scale of modes is free and is no rung: all reductions of ours give rows of B and columns of C equal norms.
`--moments` measures instead what becomes of the optimizer's moments: the loss of a student of a linear teacher after a
cut, for four ways: the leading slice of the published code, zeros with the count of the steps kept, the exact transform
of the moments of B and C, and none at all, which is what a cut does. Exits 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgelean.nn import LRU, DiagonalSystem
from edgelean.recipes._digits_data import digits_split
from edgelean.recipes.digits_sequence import sequence_net
from edgelean.shrink.balance import factors, measured_gramians, recorded_error, refitted, refitted_to, truncate
from edgelean.shrink.balance.form import balance

RUNGS = ("published", "flipped", "real map", "input", "refit", "guard")
WHITE = "initial, white"
SHARES = (1 / 2, 1 / 4, 1 / 8)
SLACK = 1.02
"""A rung may be worse by so much in the mean: records are finite."""


def published(system: DiagonalSystem, states: int) -> DiagonalSystem:
    """Return the complex balanced truncation for white noise, by square roots."""
    lam, B, C = system.lam, system.B, system.C
    pairs = 1 - lam[:, None] * lam.conj()
    roots = []
    for gramian in ((B @ B.mH) / pairs, (C.mH @ C) / pairs.conj()):
        values, vectors = torch.linalg.eigh(gramian)
        roots.append(vectors * values.clamp(min=0).sqrt())
    left, sigma, right = torch.linalg.svd(roots[1].mH @ roots[0])
    scale = sigma[:states].sqrt()
    T, W = roots[0] @ right.mH[:, :states] / scale, roots[1] @ left[:, :states] / scale
    poles, vectors = torch.linalg.eig(W.mH @ (lam[:, None] * T))
    return DiagonalSystem(poles, torch.linalg.solve(vectors, W.mH @ B), C @ T @ vectors)


def flipped(system: DiagonalSystem) -> DiagonalSystem:
    """Return the same real map with all phases between 0 and pi."""
    down = system.lam.imag < 0
    return DiagonalSystem(
        torch.where(down, system.lam.conj(), system.lam),
        torch.where(down[:, None], system.B.conj(), system.B),
        torch.where(down, system.C.conj(), system.C),
    )


def most_energy(system: DiagonalSystem, states: int, inputs: Tensor) -> DiagonalSystem:
    """Return the modes as they are through which most energy flows under the inputs."""
    reached = measured_gramians(system, inputs).controllability.diagonal().reshape(2, -1).sum(0)
    kept = (reached * system.C.abs().square().sum(0)).argsort(descending=True)[:states]
    return DiagonalSystem(system.lam[kept], system.B[kept], system.C[:, kept])


def ladder(system: DiagonalSystem, states: int, seen: Tensor, new: Tensor) -> list[float]:
    """Return the relative error of each rung on new inputs."""
    covariance = torch.einsum("bti,btj->ij", seen, seen).double() / (seen.shape[0] * seen.shape[1])

    def nearest(*systems: DiagonalSystem) -> DiagonalSystem:
        return min(systems, key=lambda each: float(recorded_error(system, each, seen)))

    def refit(reduced: DiagonalSystem) -> DiagonalSystem:
        both = refitted_to(system, refitted(system, reduced, covariance), seen)
        return nearest(reduced, refitted_to(system, reduced, seen), both)

    informed = truncate(system, states, measured_gramians(system, seen)).system
    closest = refit(informed)
    found = [
        published(system, states),
        published(flipped(system), states),
        truncate(system, states).system,
        informed,
        closest,
        nearest(closest, refit(most_energy(system, states, seen))),
    ]
    silent = DiagonalSystem(system.lam[:1], system.B[:1], 0 * system.C[:, :1])
    whole = float(recorded_error(system, silent, new))
    return [math.sqrt(float(recorded_error(system, each, new)) / whole) for each in found]


def trained(seed: int, steps: int) -> tuple[DiagonalSystem, Tensor, Tensor]:
    """Return the layer of a small trained network, and what it reads from training and from test data."""
    torch.manual_seed(seed)
    (x, y), _, (test, _) = ((data.reshape(-1, 64, 1), labels) for data, labels in digits_split())
    model = sequence_net(width=16, states=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        chosen = torch.randint(len(x), (32,))
        loss = torch.nn.functional.cross_entropy(model(x[chosen]), y[chosen])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    block = model.eval().blocks[0]
    layer = block.layer
    assert isinstance(layer, LRU)
    with torch.no_grad():
        norm = block.norm
        assert isinstance(norm, torch.nn.Module)
        seen, new = (norm(model.encoder(each[:64])) for each in (x, test))
    return layer.system(), seen, new


def initial(seed: int, pole: float) -> tuple[DiagonalSystem, Tensor, Tensor]:
    """Return a layer as it is initialised, and two records of noise with one pole."""
    torch.manual_seed(seed)
    system = LRU(8, 64).system()
    noise = torch.randn(64, 256, 8, dtype=torch.float64)
    for t in range(1, noise.shape[1]):
        noise[:, t] += pole * noise[:, t - 1]
    return system, noise[:32], noise[32:]


def show(source: str, errors: dict[int, list[float]]) -> bool:
    """Print the errors of a source, mean over seeds; return whether no rung is worse than the one before."""
    print(f"{source}: relative error of the outputs right after a cut (mean over seeds)")
    print("         states  " + "".join(f"{rung:>11}" for rung in RUNGS))
    for states, row in errors.items():
        print(f"         {states:6}  " + "".join(f"{error:11.4f}" for error in row))
    means = [math.exp(statistics.mean(math.log(row[k] + 1e-12) for row in errors.values())) for k in range(len(RUNGS))]
    judged = (1, 2, 4, 5) if source == WHITE else (3, 4, 5)
    worse = [RUNGS[k] for k in judged if means[k] > SLACK * means[k - 1]]
    word = "MISSED" if worse else "ok"
    print(f"  {word:7}worse than the rung before: {', '.join(worse) or 'none'}; goal: none")
    sys.stdout.flush()
    return not worse


def climb(seeds: int, steps: int) -> tuple[bool, dict[str, dict[int, list[float]]]]:
    """Measure and print all sources."""
    sources: dict[str, Callable[[int], tuple[DiagonalSystem, Tensor, Tensor]]] = {
        "trained on digits": lambda seed: trained(seed, steps),
        "initial, coloured": lambda seed: initial(seed, 0.95),
        WHITE: lambda seed: initial(seed, 0.0),
    }
    met, figures = True, {}
    for source, make in sources.items():
        rows: dict[int, list[list[float]]] = {}
        for seed in range(seeds):
            system, seen, new = make(seed)
            for share in SHARES:
                states = round(share * system.states)
                rows.setdefault(states, []).append(ladder(system, states, seen, new))
        figures[source] = {states: np.mean(found, axis=0).tolist() for states, found in rows.items()}
        met &= show(source, figures[source])
    return met, figures


# -- moments of the optimizer ------------------------------------------------------------------------------------------

WAYS = ("leading slice", "zero, count kept", "transformed", "deleted (ours)")
DECAY = 0.999
"""Of the second moments."""


def student_loss(seed: int, way: str, before: int, after: int) -> list[float]:
    """Train a student of a linear teacher, cut it, and return its loss on new inputs after each further step."""
    torch.manual_seed(seed)
    teacher, layer = LRU(4, 16).double(), LRU(4, 48).double()
    data = torch.randn(8, 64, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(99))
    optimizer = torch.optim.Adam(layer.parameters(), lr=3e-3)

    def step(inputs: Tensor) -> None:
        loss = (layer(inputs) - teacher(inputs).detach()).square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    for _ in range(before):
        step(torch.randn(8, 64, 4, dtype=torch.float64))
    cut(layer, optimizer, way)
    losses = []
    for _ in range(after):
        step(torch.randn(8, 64, 4, dtype=torch.float64))
        with torch.no_grad():
            losses.append(float((layer(data) - teacher(data)).square().mean()))
    return losses


def cut(layer: LRU, optimizer: torch.optim.Optimizer, way: str, states: int = 40) -> None:
    """Cut a layer, and treat what the optimizer remembers of it in one way."""
    old = {name: (parameter, optimizer.state.pop(parameter)) for name, parameter in layer.named_parameters()}
    before, gain = layer.system(), layer.gamma_log.detach().exp()
    reduction = truncate(before, states)
    layer.load_system(reduction.system)
    if way == "transformed":
        both = carried(before, layer.system(), reduction.order)
        gains = gain.repeat(2), layer.gamma_log.detach().exp().repeat(2)
        transform(layer, optimizer, old, (gains[1][:, None] * both[0] / gains[0], both[1]))
    for name, (parameter, entry) in old.items():
        dim = layer.state_dimensions.get(name)
        if dim is None:
            optimizer.state[parameter] = entry
        elif way in WAYS[:2]:
            kept = {key: entry[key].narrow(dim, 0, states).clone() for key in ("exp_avg", "exp_avg_sq")}
            if way == "zero, count kept":
                kept = {key: torch.zeros_like(value) for key, value in kept.items()}
            optimizer.state[parameter] = {"step": entry["step"], **kept}


def carried(old: DiagonalSystem, new: DiagonalSystem, order: int) -> tuple[Tensor, Tensor]:
    """Return what makes gradients of B and C at the balanced truncation of a system of those at the system.

    They multiply gradients of B, and of C transposed, real parts above imaginary parts: ``[2 r, 2 N]``. With the states
    ``x = T z`` and ``z = W.mT x`` those of B go with T, those of C with W. Exact but for what the truncation changes.
    """
    T, W = balance(factors(old), order).bases(order)
    moved = old.lam[:, None] * torch.complex(*T.chunk(2))
    poles, vectors = torch.linalg.eig(W.mT @ torch.cat([moved.real, moved.imag]))
    place = (poles - new.lam[:, None]).abs().argmin(1)
    rows = torch.linalg.inv(vectors)[place] @ W.mT.to(poles.dtype)
    driven = rows @ torch.cat([old.B.real, old.B.imag]).to(poles.dtype)
    scale = ((new.B * driven.conj()).sum(1) / driven.abs().square().sum(1))[:, None]
    pairs = torch.where(poles[place].imag == 0, 1.0, 2.0)[:, None]
    columns, rows = pairs * (T.to(poles.dtype) @ vectors).mT[place] / scale, scale * rows
    sign = torch.ones(2 * old.states, dtype=torch.float64)
    sign[old.states :] = -1
    return torch.cat([columns.real, -columns.imag]), torch.cat([rows.real, -rows.imag]) * sign


def transform(
    layer: LRU,
    optimizer: torch.optim.Optimizer,
    old: Mapping[str, tuple[nn.Parameter, dict[str, Tensor]]],
    both: tuple[Tensor, Tensor],
) -> None:
    """Transform the moments of B and C; those of the poles need gradients that nobody kept, and begin anew.

    Second moments are mixed with the squares, first moments taken out (Robert et al., "LDAdam", 2024).
    """
    for names, matrix, dim in ((("B_re", "B_im"), both[0], 0), (("C_re", "C_im"), both[1], 1)):
        entries = [old[name][1] for name in names]
        m, v = (torch.cat([e[key].movedim(dim, 0) for e in entries]) for key in ("exp_avg", "exp_avg_sq"))
        trust = 1 - DECAY ** float(entries[0]["step"])
        spread = (v / trust - m.square()).clamp(min=0)
        moments = matrix @ m, trust * (matrix.square() @ spread + (matrix @ m).square())
        for name, first, second in zip(names, *(each.chunk(2) for each in moments), strict=True):
            kept = {"exp_avg": first.movedim(0, dim).contiguous(), "exp_avg_sq": second.movedim(0, dim).contiguous()}
            optimizer.state[layer.get_parameter(name)] = {"step": entries[0]["step"].clone(), **kept}


def compare_moments(seeds: int) -> tuple[bool, dict[str, list[float]]]:
    """Print the loss after each way, mean over seeds; the goal is that ours is no worse than slices after 100 steps."""
    marks, figures = (1, 10, 30, 100), {}
    print("moments after a cut from 48 to 40 states: mean loss of the student so many steps later, and its largest")
    for way in WAYS:
        runs = [student_loss(seed, way, before=300, after=marks[-1]) for seed in range(seeds)]
        means = [statistics.mean(run[mark - 1] for run in runs) for mark in marks]
        figures[way] = [*means, statistics.mean(max(run) for run in runs)]
        print(f"         {way:18}" + "".join(f"{mean:11.5f}" for mean in figures[way]))
    met = figures[WAYS[-1]][3] <= figures[WAYS[0]][3]
    print(f"  {'ok' if met else 'MISSED':7}ours after {marks[-1]} steps; goal: no worse than the leading slice")
    return met, figures


def main() -> int:
    """Run, print, and return 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two seeds and 200 steps of training")
    parser.add_argument("--moments", action="store_true", help="what becomes of the optimizer's moments")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    met: bool
    figures: object
    if arguments.moments:
        met, figures = compare_moments(2 if arguments.quick else 6)
    else:
        met, figures = climb(*((2, 200) if arguments.quick else (5, 1000)))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
