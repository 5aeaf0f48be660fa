"""Bring the numbers that modules hold into line with the shapes of their parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from edgelean.shrink.attributes import Attribute, set_number

if TYPE_CHECKING:
    from edgelean.shrink.plan import Plan


def align(model: nn.Module) -> None:
    """Bring the attributes of standard modules into line with the shapes of their parameters."""
    for module in model.modules():
        for kinds, aligner, _ in _ALIGNERS:
            if isinstance(module, kinds):
                aligner(module)


def aligned(module: nn.Module) -> frozenset[str]:
    """Return the names of the numbers that `align` takes from the shapes of a module's parameters."""
    if next(module.parameters(), None) is None and next(module.buffers(), None) is None:
        return frozenset()
    return frozenset(name for kinds, _, names in _ALIGNERS if isinstance(module, kinds) for name in names)


def follow(model: nn.Module, plan: Plan) -> None:
    """Let the numbers in a model's own code shrink as a plan says."""
    for scale in plan.scales:
        set_number(model, Attribute(scale.path, scale.name), scale.after)


def _align_convolution(module: Any) -> None:
    outputs, per_group = module.weight.shape[:2]
    if module.groups > 1 and module.in_channels == module.groups:
        module.groups = outputs * module.groups // module.out_channels
    module.in_channels, module.out_channels = per_group * module.groups, outputs


def _align_transposed(module: Any) -> None:
    inputs, per_group = module.weight.shape[:2]
    if module.groups > 1 and module.in_channels == module.groups:
        module.groups = inputs
    module.in_channels, module.out_channels = inputs, per_group * module.groups


def _align_linear(module: Any) -> None:
    module.out_features, module.in_features = module.weight.shape


def _align_norm(module: Any) -> None:
    known = module.weight if module.weight is not None else module.running_mean
    if known is not None:
        module.num_features = len(known)


def _align_layer_norm(module: Any) -> None:
    if module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)


def _align_group_norm(module: Any) -> None:
    if module.weight is not None:
        module.num_channels = len(module.weight)


def _align_embedding(module: Any) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


def _align_recurrent(module: Any) -> None:
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    module.hidden_size, module.input_size = module.weight_ih_l0.shape[0] // gates, module.weight_ih_l0.shape[1]
    if module.proj_size:
        module.proj_size = module.weight_hh_l0.shape[1]


def _align_cell(module: Any) -> None:
    module.hidden_size, module.input_size = module.weight_hh.shape[1], module.weight_ih.shape[1]


def _align_prelu(module: Any) -> None:
    module.num_parameters = len(module.weight)


_ALIGNERS: tuple[tuple[Any, Callable[[Any], None], tuple[str, ...]], ...] = (
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), _align_convolution, ("in_channels", "out_channels", "groups")),
    (
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        _align_transposed,
        ("in_channels", "out_channels", "groups"),
    ),
    (nn.Linear, _align_linear, ("in_features", "out_features")),
    (
        (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
        _align_norm,
        ("num_features",),
    ),
    ((nn.LayerNorm, nn.RMSNorm), _align_layer_norm, ("normalized_shape",)),
    (nn.GroupNorm, _align_group_norm, ("num_channels", "num_groups")),
    (nn.Embedding, _align_embedding, ("num_embeddings", "embedding_dim")),
    ((nn.LSTM, nn.GRU, nn.RNN), _align_recurrent, ("hidden_size", "input_size")),
    (nn.RNNCellBase, _align_cell, ("hidden_size", "input_size")),
    (nn.PReLU, _align_prelu, ("num_parameters",)),
)
