"""Forms of the linear recurrent unit: time and memory of forward and backward, on one thread of this CPU.

Every form gets the same parameters and inputs, computes what follows from the parameters anew each time, and has to
give the outputs of ours. Times are process time; the forms take turns, and ratios are of medians. Memory is what
autograd keeps for the backward pass besides the inputs, which belong to the layer before. The floor is the six matrix
products that no form with a state per time step can do without. Exits 1 when a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from edgelean.nn import LRU
from edgelean.nn.scan import Map, Pair, chunked, product, respond

BATCH, WIDTH = 16, 64
TIMES, STATES = (64, 256, 784), (16, 64, 256)
ROUNDS, QUICK_ROUNDS = 15, 5
HOPELESS = 8
"""A form that takes this many times as long as ours in the first round is not timed again."""

Form = Callable[[Tensor, Map], Tensor]


def sequential_loop(inputs: Tensor, system: Map) -> Tensor:
    """Step by step in real arithmetic."""
    lam = system.poles.once()
    added = [(inputs @ part.t()).unbind(1) for part in system.B]
    x: Pair = (torch.zeros_like(added[0][0]), torch.zeros_like(added[0][0]))
    states = []
    for b_re, b_im in zip(*added, strict=True):
        kept = product(lam, x)
        x = kept[0] + b_re, kept[1] + b_im
        states.append(x)
    return read(torch.stack([s[0] for s in states], 1), torch.stack([s[1] for s in states], 1), system)


def complex_loop(inputs: Tensor, system: Map) -> Tensor:
    """Step by step in complex arithmetic."""
    lam = torch.complex(*system.poles.once())
    x, states = torch.zeros_like(lam), []
    for b in driven(inputs, system).unbind(1):
        x = lam * x + b
        states.append(x)
    return read_complex(torch.stack(states, 1), system)


def doubling(inputs: Tensor, system: Map) -> Tensor:
    """Hillis and Steele: 1, 2, 4, ... steps at once."""
    x = tuple(inputs @ part.t() for part in system.B)
    reach = 1
    while reach < inputs.shape[1]:
        power = system.poles.powers(torch.tensor(float(reach)))
        late = [torch.nn.functional.pad(part[:, :-reach], (0, 0, reach, 0)) for part in x]
        more = product(power, (late[0], late[1]))
        x = x[0] + more[0], x[1] + more[1]
        reach *= 2
    return read(x[0], x[1], system)


def odd_even(inputs: Tensor, system: Map) -> Tensor:
    """Blelloch: pairs of steps first, recursively, then the steps between."""
    x = _odd_even((inputs @ system.B[0].t(), inputs @ system.B[1].t()), system, 1)
    return read(x[0], x[1], system)


def _odd_even(added: Pair, system: Map, stride: int) -> Pair:
    time = added[0].shape[1]
    if time == 1:
        return added
    power = system.poles.powers(torch.tensor(float(stride)))
    even = added[0][:, : time // 2 * 2 : 2], added[1][:, : time // 2 * 2 : 2]
    moved = product(power, even)
    odd = _odd_even((moved[0] + added[0][:, 1::2], moved[1] + added[1][:, 1::2]), system, 2 * stride)
    count = (time - 1) // 2
    moved = product(power, (odd[0][:, :count], odd[1][:, :count]))
    halves = []
    for part in range(2):
        rest = torch.cat([added[part][:, :1], moved[part] + added[part][:, 2::2]], 1)
        both = torch.stack([rest[:, : time // 2], odd[part]], 2).flatten(1, 2)
        halves.append(torch.cat([both, rest[:, time // 2 :]], 1))
    return halves[0], halves[1]


def fourier(inputs: Tensor, system: Map) -> Tensor:
    """Each state as a convolution, by the Fourier transform."""
    time = inputs.shape[1]
    powers = torch.complex(*system.poles.powers(torch.arange(float(time))))
    spectrum = torch.fft.fft(driven(inputs, system), n=2 * time, dim=1) * torch.fft.fft(powers, n=2 * time, dim=0)
    return read_complex(torch.fft.ifft(spectrum, dim=1)[:, :time], system)


def impulse_response(inputs: Tensor, system: Map) -> Tensor:
    """One causal convolution with the impulse response of the whole map."""
    time = inputs.shape[1]
    power = system.poles.powers(torch.arange(float(time)).flip(0))
    written = product((power[0][..., None], power[1][..., None]), system.B)
    kernel = system.C[0] @ written[0] - system.C[1] @ written[1]
    padded = torch.nn.functional.pad(inputs.mT, (time - 1, 0))
    return torch.nn.functional.conv1d(padded, kernel.permute(1, 2, 0)).mT


def two_level(inputs: Tensor, system: Map, chunk: int) -> Tensor:
    """Find the states of each chunk by a Toeplitz matrix per state, those between chunks by another one."""
    time = inputs.shape[1]
    added = torch.nn.functional.pad(driven(inputs, system), (0, 0, 0, -time % chunk))
    chunks = added.shape[1] // chunk
    blocks = torch.unflatten(added, 1, (chunks, chunk)).permute(3, 0, 1, 2)
    local = blocks.flatten(1, 2) @ triangle(system, chunk, 1).mT
    local = torch.unflatten(local, 1, (len(inputs), chunks))
    ends = local[..., -1] @ triangle(system, chunks, chunk).mT
    before = torch.nn.functional.pad(ends[..., :-1], (1, 0))
    left = torch.complex(*system.poles.powers(torch.arange(1.0, chunk + 1)))
    states = local + before[..., None] * left.t()[:, None, None]
    return read_complex(states.permute(1, 2, 3, 0).flatten(1, 2)[:, :time], system)


def triangle(system: Map, size: int, stride: int) -> Tensor:
    """Return ``lam ** (stride * (i - j))`` for each state and j <= i, ``[N, size, size]``."""
    between = torch.arange(float(size))[:, None] - torch.arange(float(size))
    power = torch.complex(*system.poles.powers(stride * between.clamp(min=0)))
    return (power * (between >= 0)[..., None]).permute(2, 0, 1)


def associative(inputs: Tensor, system: Map) -> Tensor:
    """Scan pairs of factor and summand with what torch has for it."""
    from torch._higher_order_ops.associative_scan import associative_scan

    added = driven(inputs, system)
    lam = torch.complex(*system.poles.once()).expand_as(added)

    def combine(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return a[0] * b[0], b[0] * a[1] + b[1]

    states: Tensor = associative_scan(combine, (lam.clone(), added), dim=1, combine_mode="generic")[1]
    return read_complex(states, system)


def driven(inputs: Tensor, system: Map) -> Tensor:
    """Return what each step adds to the states, complex ``[batch, time, N]``."""
    return torch.complex(inputs @ system.B[0].t(), inputs @ system.B[1].t())


def read(x_re: Tensor, x_im: Tensor, system: Map) -> Tensor:
    """Return the outputs for states."""
    return x_re @ system.C[0].t() - x_im @ system.C[1].t()


def read_complex(states: Tensor, system: Map) -> Tensor:
    """Return the outputs for complex states."""
    return read(states.real, states.imag, system)


FORMS: Mapping[str, Form] = {
    "ours": respond,
    "sequential loop": sequential_loop,
    "complex loop": complex_loop,
    "doubling": doubling,
    "odd-even": odd_even,
    "fourier": fourier,
    "impulse response": impulse_response,
    "chunks of 8": lambda u, system: chunked(u, system, 8),
    "chunks of 16": lambda u, system: chunked(u, system, 16),
    "two levels of 16": lambda u, system: two_level(u, system, 16),
    "two levels of 28": lambda u, system: two_level(u, system, 28),
    "associative scan": associative,
}


@dataclass(frozen=True)
class Figures:
    """One size: median times in ms, and bytes kept for the backward pass, by form."""

    time: int
    states: int
    floor_ms: float
    times_ms: dict[str, float]
    kept_bytes: dict[str, int]

    def rivals(self) -> dict[str, float]:
        """Return how long each other form takes, relative to ours."""
        return {name: ms / self.times_ms["ours"] for name, ms in self.times_ms.items() if name != "ours"}

    def memory(self) -> float:
        """Return what ours keeps, relative to the sequential loop."""
        return self.kept_bytes["ours"] / self.kept_bytes["sequential loop"]


def measure(length: int, states: int, rounds: int) -> Figures:
    """Time all forms at one size."""
    torch.manual_seed(0)
    layer, slope = LRU(WIDTH, states), torch.randn(BATCH, length, WIDTH)
    inputs = torch.randn(BATCH, length, WIDTH, requires_grad=True)
    expected, kept, times = respond(inputs, system_of(layer)), {}, {}
    for name, form in FORMS.items():
        found, kept[name] = keeping(form, inputs, layer)
        error = float((found - expected).detach().abs().max() / expected.detach().abs().max())
        if error > 1e-4:
            raise SystemExit(f"{name} is wrong by {error:.1e} at {length} steps and {states} states")
        times[name] = [once(form, inputs, layer, slope)]
    near = [name for name in FORMS if times[name][0] < HOPELESS * times["ours"][0]]
    floors = []
    for _ in range(rounds):
        floors.append(products(length, states))
        for name in near:
            times[name].append(once(FORMS[name], inputs, layer, slope))
    medians = {name: statistics.median(found[1:] or found) for name, found in times.items()}
    return Figures(length, states, statistics.median(floors), medians, kept)


def system_of(layer: LRU) -> Map:
    """Return poles, B and C from the parameters, as the layer itself computes them."""
    return layer._map(dict(layer.named_parameters()))


def once(form: Form, inputs: Tensor, layer: LRU, slope: Tensor) -> float:
    """Return the process time of one forward and backward, in ms."""
    layer.zero_grad()
    inputs.grad = None
    started = time.process_time()
    torch.autograd.backward(form(inputs, system_of(layer)), slope)
    return 1e3 * (time.process_time() - started)


def keeping(form: Form, inputs: Tensor, layer: LRU) -> tuple[Tensor, int]:
    """Return the outputs of a form, and the bytes of all storages that it keeps, without those of the inputs."""
    kept: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        # Holding the tensor itself: a storage that is freed may give its address to the next one.
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = form(inputs, system_of(layer))
    kept.pop(inputs.untyped_storage().data_ptr(), None)
    return outputs, sum(size for size, _ in kept.values())


def products(length: int, states: int) -> float:
    """Return the process time of the six matrix products of forward and backward, in ms."""
    rows = BATCH * length
    u, g = torch.randn(rows, WIDTH), torch.randn(rows, WIDTH)
    write, x = torch.randn(WIDTH, 2 * states), torch.randn(rows, 2 * states)
    started = time.process_time()
    for a, b in ((u, write), (x, write.t()), (g, write), (u.t(), x), (x.t(), g), (x, write.t())):
        torch.mm(a, b)
    return 1e3 * (time.process_time() - started)


def show(figures: Figures) -> bool:
    """Print one size, with its goals; return whether they are met."""
    rivals, ours = figures.rivals(), figures.times_ms["ours"]
    nearest = min(rivals, key=lambda name: rivals[name])
    fastest, small = rivals[nearest] > 1, figures.memory() < 0.5
    print(f"T = {figures.time}, N = {figures.states}")
    print(
        f"  {'ok' if fastest else 'MISSED':7}{ours:8.2f} ms, {ours / figures.floor_ms:.2f} times the matrix products "
        f"({figures.floor_ms:.2f} ms); goal: faster than {nearest}, {rivals[nearest] * ours:.2f} ms"
    )
    print(
        f"  {'ok' if small else 'MISSED':7}{figures.kept_bytes['ours'] / 2**20:8.2f} MiB kept besides the inputs, "
        f"{figures.memory():.2f} of the sequential loop; goal: below 0.5"
    )
    for name, ratio in sorted(rivals.items(), key=lambda item: item[1]):
        megabytes = figures.kept_bytes[name] / 2**20
        print(f"  {'':7}{ratio * ours:8.2f} ms, {ratio:6.2f} times ours, {megabytes:8.2f} MiB  {name}")
    sys.stdout.flush()
    return fastest and small


def main() -> int:
    """Run, print, and return 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    found = [measure(length, states, rounds) for length in TIMES for states in STATES]
    reached = sum(show(figures) for figures in found) == len(found)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(figures) for figures in found], indent=2) + "\n")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
