"""What a model is wrapped in while it trains: several processes, compiled code."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from edgelean.errors import DeviceError, EdgeleanError, InputError, LawError

T = TypeVar("T")

SHARDED = {
    "DataParallel": "it copies the model for every batch; use DistributedDataParallel",
    "FullyShardedDataParallel": "no process holds whole parameters; use DistributedDataParallel",
    "DeepSpeedEngine": "it keeps parameters and state in buffers of its own; use DistributedDataParallel",
}


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside DistributedDataParallel and torch.compile.

    Raises
    ------
    InputError
        If it is wrapped in something with which parameters cannot be cut.
    """
    for part in model.modules():
        if type(part).__name__ in SHARDED:
            raise InputError(f"a {type(part).__name__} cannot be cut: {SHARDED[type(part).__name__]}")
    if any(hasattr(parameter, "placements") for parameter in model.parameters()):
        raise InputError("parameters that are spread over processes (DTensor) cannot be cut: train it data-parallel")
    while True:
        if isinstance(model, DistributedDataParallel):
            _refuse_options(model)
            model = model.module
        elif isinstance(inside := getattr(model, "_orig_mod", None), nn.Module):
            model = inside
        else:
            return model


def refuse_sharded(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose state is spread over processes.

    Raises
    ------
    InputError
        If it is; names it.
    """
    if type(optimizer).__name__ == "ZeroRedundancyOptimizer":
        raise InputError("a ZeroRedundancyOptimizer cannot be cut: no process holds its whole state; use its inner one")


def refuse_other_wrappers(network: nn.Module, model: nn.Module) -> None:
    """Refuse a network that something trains from outside which the loop was not given.

    Parameters
    ----------
    model
        The network, or what it is wrapped in, as the loop knows it.

    Raises
    ------
    InputError
        If there is such a wrapper: it would not see that parameters change their shapes.
    """
    known = set(map(id, model.modules()))
    for each in wrappers_of(network):
        if id(each) not in known:
            kind = "torch.compile" if hasattr(each, "_orig_mod") else f"a {type(each).__name__}"
            raise InputError(f"the model is wrapped in {kind} that was not attached: wrap it first, attach that")


def wrappers_of(network: nn.Module) -> list[nn.Module]:
    """Return everything that is alive and has a network wrapped, the innermost first."""
    kinds = {*SHARDED, "DistributedDataParallel", "OptimizedModule"}
    alive = [each for each in gc.get_objects() if type(each).__name__ in kinds and isinstance(each, nn.Module)]
    around = [each for each in alive if any(part is network for part in each.modules())]
    return sorted(around, key=lambda each: len(list(each.modules())))


def _refuse_options(parallel: DistributedDataParallel) -> None:
    hooks = [state for _, state in parallel._comm_hooks if hasattr(state, "error_dict")]
    options = {
        "mixed_precision": parallel.mixed_precision is not None,
        "delay_all_reduce_named_params": bool(parallel._delay_all_reduce_params),
        "optimizers in its backward": any(hasattr(p, "_in_backward_optimizers") for p in parallel.parameters()),
        "a communication hook that remembers gradients (PowerSGD)": bool(hooks),
    }
    for option, found in options.items():
        if found:
            raise InputError(f"DistributedDataParallel with {option} cannot be cut: train without it")


def is_compiled(model: nn.Module) -> bool:
    """Tell whether torch.compile has been applied to a module or to one in it."""
    return any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in model.modules())


def eagerly(model: nn.Module) -> AbstractContextManager[Any]:
    """Keep torch.compile off while a model is observed, checked or exported; do nothing where it is not used."""
    return torch.compiler.set_stance("force_eager") if is_compiled(model) else nullcontext()


def rewire(model: nn.Module) -> list[str]:
    """Make what a model is wrapped in see the shapes that its parameters have now.

    Returns
    -------
    list
        What a person should know.
    """
    for part in _parallel(model):
        _rebuild(part)
    if not is_compiled(model):
        return []
    # Code for widths that will not come back would count against the limit of recompilations, and end them.
    torch.compiler.reset()
    return ["torch.compile compiles the model anew for its new widths, in the next step"]


def _rebuild(parallel: Any) -> None:
    """Give DistributedDataParallel a new reducer, in the way in which it makes one itself when it is unpickled."""
    built_in = getattr(dist, "BuiltinCommHookType").__members__.get(_hook_name(parallel))  # noqa: B009  not typed
    parallel.reducer._remove_autograd_hooks()  # it lives on while anybody holds it
    parameters, sparse = parallel._build_params_for_reducer()
    names = parallel._build_debug_param_to_name_mapping(parameters)
    parallel._ddp_init_helper(parameters, sparse, names, parallel.static_graph)
    parallel._has_rebuilt_buckets = False
    if parallel.static_graph:
        parallel._static_graph_delay_allreduce_enqueued = False
        parallel.reducer._set_static_graph()
        parallel.logger._set_static_graph()
    hooks, parallel._comm_hooks = parallel._comm_hooks, []
    for hook, state in hooks:
        parallel.register_comm_hook(state, hook)
    if built_in is not None:
        parallel._register_builtin_comm_hook(built_in)


def _hook_name(parallel: Any) -> str:
    """Return the name of the communication hook; one that is built in is known by nothing else."""
    return str(parallel._get_ddp_logging_data().get("comm_hook", "")).rpartition(".")[2]


@dataclass(frozen=True)
class Ranks:
    """The processes of a training. They see other data, and still have to decide alike.

    Attributes
    ----------
    group
        None where there is one process only.
    """

    group: Any

    @classmethod
    def of(cls, model: nn.Module) -> Ranks:
        """Return the processes that train a model together."""
        return cls(next((part.process_group for part in _parallel(model)), None))

    @property
    def leads(self) -> bool:
        """Whether this is the first process, or the only one."""
        return self.group is None or dist.get_rank(self.group) == 0

    def same(self, value: T) -> T:
        """Return what the first process has, in all of them."""
        return self.first(lambda: value)

    def same_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors that the first process has; each process keeps them on its own device."""
        devices = {tensor.device for tensor in tensors.values()}
        told = self.same({name: tensor.cpu() for name, tensor in tensors.items()}) if self.group else dict(tensors)
        return {name: tensor.to(next(iter(devices), "cpu")) for name, tensor in told.items()}

    def first(self, find: Callable[[], T]) -> T:
        """Let the first process find something out, and all of them have it; what fails there fails everywhere."""
        if self.group is None:
            return find()
        told: list[Any] = [None, None]
        failure: Exception | None = None
        if self.leads:
            try:
                told[0] = find()
            except Exception as error:
                failure = error
                known = isinstance(error, EdgeleanError)
                told[1] = error if known else DeviceError(f"the first process failed: {error!r}")
        dist.broadcast_object_list(told, dist.get_global_rank(self.group, 0), self.group)
        if told[1] is not None:
            raise failure or told[1]
        found: T = told[0]
        return found

    def together(self, work: Callable[[], T]) -> T:
        """Do the same in every process; refused by one of them, it is refused by all.

        Raises
        ------
        LawError
            If it is refused.
        """
        if self.group is None:
            return work()
        found, refusal = [], ""
        try:
            found.append(work())
        except LawError as error:
            refusal = str(error)
        refusals = [""] * dist.get_world_size(self.group)
        dist.all_gather_object(refusals, refusal, self.group)
        for told in refusals:
            if told:
                raise LawError(told)
        return found[0]


def synchronise(model: nn.Module) -> None:
    """Give every process the parameters of the first one, and its buffers where the training shares them."""
    for part in _parallel(model):
        # Imported here: torch may have been built without it.
        from torch.distributed.utils import _sync_module_states, _verify_param_shape_across_processes

        _verify_param_shape_across_processes(part.process_group, list(part.module.parameters()))
        size, alone = part.broadcast_bucket_size, part.parameters_to_ignore
        _sync_module_states(part.module, part.process_group, size, 0, alone, part.broadcast_buffers)


def _parallel(model: nn.Module) -> list[DistributedDataParallel]:
    return [part for part in model.modules() if isinstance(part, DistributedDataParallel)]
