"""Two processes that train one model cut it alike, and go on averaging its gradients."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest
import torch
from cut_cases import batch, network, removing
from deep_networks import Residual
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import edgelean
from edgelean.errors import DeviceError, InputError, LawError
from edgelean.shrink.bypass import Detour
from edgelean.shrink.cut import apply, put_back, saved
from edgelean.shrink.plan import Plan
from edgelean.shrink.wrappers import Ranks, refuse_sharded, synchronise, unwrapped

WORLD = 2
PLANS = {3: removing({0: (1, 4, 7), 2: (0, 5)}), 6: removing({2: (1, 2)})}
SMALL_BUCKETS = {"bucket_cap_mb": 1e-4}
VARIANTS = {
    "plain": {},
    "several buckets": SMALL_BUCKETS,
    "gradients as views": {"gradient_as_bucket_view": True, **SMALL_BUCKETS},
    "static graph": {"static_graph": True},
    "unused parameters": {"find_unused_parameters": True},
    "communication hook": {},
    "built-in hook": {},
    "compiled": {},
}


def trained(model, optimizer, average, step, loss_and_sync):
    """Train with two micro-batches a step, and a cut between the two of some steps."""
    for number in range(9):
        optimizer.zero_grad()
        loss_and_sync(2 * number, False)
        if number in PLANS:
            apply(model, PLANS[number], optimizer, average)
        loss_and_sync(2 * number + 1, True)
        optimizer.step()
        average.update_parameters(unwrapped(model))
        step(number)
    return [parameter.detach().clone() for parameter in (*unwrapped(model).parameters(), *average.parameters())]


def followers_of(model):
    return (
        torch.optim.AdamW(model.parameters(), lr=0.01),
        AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8)),
    )


def alone():
    """Return what one process learns from all of the data."""
    model = network((6, 10, 9, 3))

    def backward(number, _):
        x, y = batch(number)
        (model(x) - y).square().mean().backward()

    return trained(model, *followers_of(model), lambda number: None, backward)


def together(rank, variant):
    """Return what this process and the other one learn, each from half of the data."""
    network_ = network((6, 10, 9, 3))
    with torch.no_grad():
        for parameter in network_.parameters():
            parameter.add_(rank)  # wrapping gives all of them what the first one has
    model = parallel = DistributedDataParallel(network_, **VARIANTS[variant])
    calls = []
    if variant == "communication hook":
        parallel.register_comm_hook(calls, counting)
    elif variant == "built-in hook":
        parallel._register_builtin_comm_hook(dist.BuiltinCommHookType.ALLREDUCE)
    elif variant == "compiled":
        model = torch.compile(parallel, backend="eager")

    def backward(number, sync):
        x, y = (part[rank::WORLD] for part in batch(number))
        # What no_sync does; a static graph has to be seen whole first.
        parallel.require_backward_grad_sync = sync or parallel.static_graph
        (model(x) - y).square().mean().backward()

    counts = []
    found = trained(model, *followers_of(network_), lambda number: counts.append(len(calls)), backward)
    hooked = parallel._get_ddp_logging_data().get("comm_hook", "")
    return {"parameters": found, "calls": counts, "hook": hooked}


def counting(calls, bucket):
    calls.append(1)
    return default_hooks.allreduce_hook(None, bucket)


def rolled_back(rank):
    """Return what is learnt when a cut is tried, trained with, and taken back."""
    found = []
    for tried in (False, True):
        model = DistributedDataParallel(network())
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

        def step(number, model=model, optimizer=optimizer):
            x, y = (part[rank::WORLD] for part in batch(number))
            optimizer.zero_grad()
            (model(x) - y).square().mean().backward()
            optimizer.step()

        for number in range(3):
            step(number)
        if tried:
            before = [(each, saved(each)) for each in (model, optimizer)]
            apply(model, PLANS[3], optimizer)
            step(50)
            for each, contents in before:
                put_back(each, contents)
        for number in range(3, 6):
            step(number)
        found.append([parameter.detach().clone() for parameter in model.parameters()])
    return found


def without_block(rank):
    """Return what is learnt when a residual block goes between two steps, and when it comes back again."""
    torch.manual_seed(0)
    inside = nn.Sequential(nn.Linear(6, 8), Residual(8), Residual(8), nn.Linear(8, 3)).double()
    model, plan = DistributedDataParallel(inside), Plan((), (), {}, 0.0, detours=(Detour("1", "skip"),))
    optimizer, average = followers_of(model)
    before = []
    for number in range(6):
        if number == 2:
            before = [(each, saved(each)) for each in (model, optimizer, average)]
            apply(model, plan, optimizer, average)
        if number == 4:
            for each, contents in before:
                put_back(each, contents)
        x, y = (part[rank::WORLD] for part in batch(number))
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        average.update_parameters(model)
    return [parameter.detach().clone() for parameter in (*model.parameters(), *average.parameters())]


def agreed(rank):
    """Return what the processes agree on where they see different things."""
    ranks = Ranks.of(DistributedDataParallel(nn.Linear(2, 2)))
    plan = Plan.from_json(ranks.same(removing({0: (rank,)}).to_json()))
    failures = []
    for work in (
        lambda: ranks.first(lambda: (_ for _ in ()).throw(InputError("the first fails"))),
        lambda: ranks.first(lambda: 1 / 0),
        lambda: ranks.together(lambda: refuse() if rank == 1 else None),
    ):
        try:
            work()
        except (InputError, LawError, DeviceError, ZeroDivisionError) as error:
            failures.append((type(error).__name__, str(error)))
    other = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model = DistributedDataParallel(other)
    with torch.no_grad():
        for tensor in (*other.parameters(), other[1].running_mean):
            tensor.fill_(rank + 1)
    synchronise(model)
    return {
        "plan": plan,
        "first": ranks.first(lambda: rank),
        "tensors": ranks.same_tensors({"x": torch.full((2,), float(rank))}),
        "together": ranks.together(lambda: rank),
        "failures": failures,
        "synchronised": [other[0].weight.detach().clone(), other[1].running_mean.clone()],
    }


def refuse():
    raise LawError("the law is broken here")


def refused():
    """Return how wrappers are refused that only exist where there are processes."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns when it is imported

    words = []
    parallel = DistributedDataParallel(network())
    parallel.register_comm_hook(powerSGD_hook.PowerSGDState(None), powerSGD_hook.powerSGD_hook)
    sharded = ZeroRedundancyOptimizer(network().parameters(), torch.optim.Adam, lr=0.1)
    for try_it in (lambda: unwrapped(parallel), lambda: refuse_sharded(sharded)):
        try:
            try_it()
        except InputError as error:
            words.append(str(error))
    return words


def attached(rank, folder):
    """Return what `edgelean.attach` did to a model that two processes train on other data."""
    torch.manual_seed(0)
    layers = nn.Linear(12, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 5)
    model = DistributedDataParallel(nn.Sequential(*layers))
    optimizer, average = followers_of(model.module)
    torch.manual_seed(1 + rank)
    x = torch.randn(64, 12)
    y = x[:, :5].argmax(1)
    lean = edgelean.attach(
        model, optimizer, x[:8], "raspberry-pi-5", latency="60%", energy="60%", steps=40,
        # By the second process alone every cut would be taken back.
        validate=lambda: float(rank == 0 or len(layers[2].weight) == 512), followers=(average,),
    )  # fmt: skip
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        average.update_parameters(model.module)
        lean.step()
    delivery = lean.finish(x, y, lambda outputs, targets: 0.5, out=folder / "bundle")
    return {
        "events": [event for event in lean.events if event["event"] in ("cut", "rollback", "reading")],
        "parameters": [p.detach().clone() for p in (*model.parameters(), *average.parameters())],
        "moments": [optimizer.state[p]["exp_avg"].clone() for p in model.parameters()],
        "verdicts": [(verdict.quantity, verdict.value) for verdict in delivery.verdicts],
    }


def work(rank, folder):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    dist.init_process_group("gloo", meeting, timedelta(seconds=90), rank=rank, world_size=WORLD)
    found = {variant: together(rank, variant) for variant in VARIANTS}
    found |= {
        "rolled back": rolled_back(rank),
        "agreed": agreed(rank),
        "block": without_block(rank),
        "refused": refused(),
    }
    found["attached"] = attached(rank, folder)
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What both processes found out."""
    folder = tmp_path_factory.mktemp("processes")
    multiprocessing.spawn(work, (folder,), WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]


def largest_difference(left, right):
    return max((a - b).abs().max().item() for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_learn_what_one_learns_from_all_the_data_before_and_after_cuts(found, variant):
    first, second = (each[variant]["parameters"] for each in found)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert largest_difference(first, alone()) < 1e-12


def test_communication_hooks_stay(found):
    for each in found:
        calls = each["communication hook"]["calls"]
        assert calls == sorted(set(calls))  # called in every step, those after a cut included
        assert each["communication hook"]["hook"] == "counting"
        assert each["built-in hook"]["hook"].endswith("ALLREDUCE")


def test_a_cut_that_is_taken_back_never_happened(found):
    for each in found:
        assert largest_difference(*each["rolled back"]) == 0


def test_processes_stay_alike_when_a_block_goes_and_when_it_comes_back(found):
    first, second = (each["block"] for each in found)
    assert len(first) == len(second) == 24
    assert largest_difference(first, second) == 0


def test_what_the_first_process_sees_plans_and_holds_is_valid_for_all(found):
    first, second = (each["agreed"] for each in found)
    assert first["plan"] == second["plan"] == removing({0: (0,)})
    assert first["first"] == second["first"] == 0
    assert second["tensors"]["x"].tolist() == [0, 0]
    assert (first["together"], second["together"]) == (0, 1)
    assert all(torch.equal(tensor, torch.ones_like(tensor)) for tensor in second["synchronised"])


def test_what_fails_in_one_process_fails_in_all_of_them(found):
    (input_error, arithmetic, law), others = (each["agreed"]["failures"] for each in found)
    assert input_error == others[0] == ("InputError", "the first fails")
    assert arithmetic[0] == "ZeroDivisionError"
    assert others[1] == ("DeviceError", "the first process failed: ZeroDivisionError('division by zero')")
    assert law == others[2] == ("LawError", "the law is broken here")


def test_hooks_and_optimizers_that_remember_parts_of_gradients_are_refused_by_name(found):
    hook, optimizer = found[0]["refused"]
    assert "PowerSGD" in hook
    assert "ZeroRedundancyOptimizer" in optimizer


def test_attach_steers_all_processes_alike(found):
    first, second = (each["attached"] for each in found)
    kinds = [event["event"] for event in first["events"]]
    assert kinds.count("cut") > 0
    assert kinds.count("rollback") == 0
    for mine, other in zip(first["events"], second["events"], strict=True):
        assert mine["step"] == other["step"]
        assert mine.get("plan") == other.get("plan")
        assert mine.get("latency_ms") == other.get("latency_ms")
    for key in ("parameters", "moments"):
        assert largest_difference(first[key], second[key]) < 1e-6
    assert first["verdicts"] == second["verdicts"]
