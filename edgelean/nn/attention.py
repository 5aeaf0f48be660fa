"""Multi-head attention whose heads need not add up to the width of the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class FreeAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention for any number of heads, and any number of places in each.

    Same parameters, same arguments, same outputs. PyTorch's own forward wants ``num_heads`` times ``head_dim`` to be
    the width of the model, so no head can be taken out; this one reads both from the weights. An existing module
    becomes one by :func:`freed`, and stays the same object.
    """

    scale: float

    @property
    def _qkv_same_embed_dim(self) -> bool:
        """Keep nn.TransformerEncoderLayer from its fast path, which does not call this module."""
        return False

    @_qkv_same_embed_dim.setter
    def _qkv_same_embed_dim(self, value: bool) -> None:
        pass

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; arguments and results are those of nn.MultiheadAttention."""
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
        elif not self.batch_first:
            same_key, same_value = key is query, value is key
            query = query.transpose(0, 1)
            key = query if same_key else key.transpose(0, 1)
            value = key if same_value else value.transpose(0, 1)
        q, k, v = (self._by_head(x) for x in self._projected(query, key, value))
        mask = self._mask(q, k, key_padding_mask, attn_mask)
        if need_weights:
            scores = q @ k.transpose(-1, -2) * self.scale
            weights: Tensor | None = torch.softmax(scores if mask is None else scores + mask, -1)
            mixed = functional.dropout(weights, self.dropout, self.training) @ v  # type: ignore[arg-type]  # never None
        else:
            weights = None
            dropped = self.dropout if self.training else 0.0
            mixed = functional.scaled_dot_product_attention(q, k, v, mask, dropped, scale=self.scale)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        packed: Tensor | None = self.in_proj_weight
        if packed is None:
            weights: tuple[Tensor, ...] = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        elif query is key and key is value:
            return functional.linear(query, packed, self.in_proj_bias).chunk(3, -1)
        else:
            weights = packed.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        inputs = (query, key, value)
        return tuple(functional.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))

    def _by_head(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.num_heads, -1)).transpose(1, 2)

    def _mask(self, q: Tensor, k: Tensor, padding: Tensor | None, attn_mask: Tensor | None) -> Tensor | None:
        """Return what is added to the scores, ``[batch or 1, heads or 1, queries or 1, keys]``."""
        mask = None
        if attn_mask is not None:
            mask = _added(attn_mask, q.dtype)
            mask = torch.unflatten(mask, 0, (-1, self.num_heads)) if mask.dim() == 3 else mask[None, None]
        if padding is not None:
            hidden = _added(padding, q.dtype).reshape(-1, 1, 1, k.shape[-2])
            mask = hidden if mask is None else mask + hidden
        return mask


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers to add: minus infinity where it is true."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


def freed(model: nn.Module) -> nn.Module:
    """Let every plain nn.MultiheadAttention of a model lose heads; it computes what it did.

    Those with extra keys (``add_bias_kv``, ``add_zero_attn``) stay as they are.
    """
    for module in model.modules():
        if type(module) is nn.MultiheadAttention and module.bias_k is None and not module.add_zero_attn:
            scale = module.head_dim**-0.5
            vars(module).pop("_qkv_same_embed_dim", None)
            become: Any = module
            become.__class__ = FreeAttention
            become.scale = scale
    return model
