"""One token for a few texts, on the CPU: what transformers computes, by kernels made for it.

A token of n texts is n rows through every layer. Linear layers, x W^T + b, spend their time waiting
for W: here it is packed once, so that it is read in the order in which it is needed. Attention is
of one query, softmax(s q K^T) V, over keys and values where the cache has them.

Both are used where they apply, and torch's own elsewhere: float32 on the CPU, with the native part
of Upslope built. A row's result does not depend on the other rows or on the number of threads. The
packed weights are a second copy of the layers' for as long as completions are sampled.
"""

from __future__ import annotations

import contextlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from upslope.built import BUILT
from upslope.language.models import backbone, unwrapped
from upslope.language.requirements import need

if BUILT:
    from upslope import _native

FITS = ("cpu", torch.float32)
MOST_ROWS = 64
"""With more rows a product is no longer about reading the weight."""
FEWEST = 64
"""Smaller layers, such as an adapter's, stay as they are."""
NAME = "upslope"
"""What transformers knows the attention by."""


@contextlib.contextmanager
def decoding(model: Any, bf16: bool) -> Iterator[None]:
    """Within, the model's linear layers and attention are those of this page, where they apply."""
    parameter = next(model.parameters())
    if bf16 or not BUILT or (parameter.device.type, parameter.dtype) != FITS:
        yield
        return
    with contextlib.ExitStack() as stack:
        for layer in model.modules():
            if (weight := _weight(layer)) is not None:
                layer.forward = partial(_linear, _packed(weight, layer.bias), layer.forward)
                stack.callback(delattr, layer, "forward")
        config = unwrapped(model).config
        if config._attn_implementation == "sdpa" and _looks_up(type(backbone(model)).__module__):
            _register()
            config._attn_implementation = NAME
            stack.callback(setattr, config, "_attn_implementation", "sdpa")
        yield


@cache
def _looks_up(module: str) -> bool:
    """Return whether a module's models call the attention that their settings name, and no more.

    Some (Falcon, sparse attention) compare the name with "sdpa" and do something else otherwise.
    """
    source = sys.modules[module]
    if not hasattr(source, "ALL_ATTENTION_FUNCTIONS") or getattr(source, "__file__", None) is None:
        return False
    return re.search(r'_attn_implementation (==|in) .*"sdpa"', inspect.getsource(source)) is None


def _weight(layer: nn.Module) -> Tensor | None:
    """Return the weight [outputs, inputs] of a layer that is packed, or None."""
    if "forward" in vars(layer):  # somebody else's already
        return None
    turned = type(layer) is need("transformers.pytorch_utils").Conv1D
    if type(layer) is not nn.Linear and not turned:
        return None
    weight = layer.weight
    assert isinstance(weight, Tensor)
    weight = weight.detach()
    if (weight.device.type, weight.dtype) != FITS or min(weight.shape) < FEWEST:
        return None
    return weight.T if turned else weight


def _packed(weight: Tensor, bias: Tensor | None) -> Any:
    return _native.PackedLinear(weight.numpy(), None if bias is None else bias.detach().numpy())


def _linear(packed: Any, otherwise: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return x W^T + b, [..., outputs]."""
    rows = x.numel() // x.shape[-1]
    if not 0 < rows <= MOST_ROWS or x.dtype != torch.float32:
        return otherwise(x)
    out = torch.empty(*x.shape[:-1], packed.outputs)
    packed.apply(
        x.detach().reshape(rows, -1).contiguous().numpy(),
        out.view(rows, -1).numpy(),
        torch.get_num_threads(),
    )
    return out


def _register() -> None:
    attention = need("transformers.modeling_utils").AttentionInterface
    masks = need("transformers.masking_utils")
    attention.register(NAME, attend)
    masks.AttentionMaskInterface.register(NAME, masks.sdpa_mask)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Return softmax(s q K^T) V, [n, queries, heads, D], as `sdpa` of transformers does."""
    n, heads, queries, size = query.shape
    if (
        queries != 1
        or query.dtype != torch.float32
        or key.shape != value.shape
        or any(x.stride()[2:] != (size, 1) for x in (key, value))
        or (attention_mask is not None and not _plain(attention_mask))
        or any(more.get(name) for name in ("softcap", "output_attentions"))
        or any(more.get(name) is not None for name in ("position_bias", "cache"))
    ):
        otherwise = need("transformers.integrations.sdpa_attention").sdpa_attention_forward
        found: tuple[Tensor, None] = otherwise(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
        return found
    seen = None
    if attention_mask is not None:
        seen = attention_mask[:, 0, 0, : key.shape[2]].expand(n, -1).contiguous().numpy()
    out = torch.empty(n, 1, heads, size)
    _native.attend(
        query[:, :, 0].contiguous().numpy(),
        key.numpy(),
        value.numpy(),
        seen,
        out[:, 0].numpy(),
        size**-0.5 if scaling is None else scaling,
        torch.get_num_threads(),
    )
    return out, None


def _plain(mask: Tensor) -> bool:
    """Return whether a mask is [n or 1, 1, 1, length] of what is seen."""
    return mask.dtype == torch.bool and mask.ndim == 4 and mask.shape[1:3] == (1, 1)
