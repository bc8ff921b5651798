"""Watching f at work: whether the derivative that autograd has of it is all of its derivative.

Every operation that f runs on what depends on the sample is seen, also inside of modules. Those in
SMOOTH are continuous and have the derivative that autograd uses almost everywhere. Any other may
jump, where the derivative of an expectation has a term that no path shows:

    d/dμ E[x > 0] = p(0; μ)          and autograd says 0
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from upslope.gradient.score import depends_on

# fmt: off
SMOOTH = frozenset(
    (
        # arithmetic
        "add", "sub", "rsub", "mul", "div", "true_divide", "reciprocal", "neg", "abs", "pow",
        "square", "sqrt", "rsqrt", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p",
        "logaddexp", "logaddexp2", "xlogy", "hypot", "lerp", "addcmul", "addcdiv", "clamp",
        "clamp_min", "clamp_max", "maximum", "minimum", "sin", "cos", "sinh", "cosh", "tanh",
        "asin", "acos", "atan", "asinh", "acosh", "atanh", "sinc", "erf", "erfc", "erfinv",
        "lgamma", "digamma", "sigmoid", "logit", "deg2rad", "rad2deg",
        # of networks, and losses
        "relu", "hardtanh", "hardsigmoid", "hardswish", "leaky_relu", "elu", "gelu", "silu", "mish",
        "softplus", "softshrink", "log_sigmoid_forward", "_softmax", "_log_softmax",
        "_prelu_kernel", "glu", "embedding", "native_layer_norm", "native_group_norm",
        "native_batch_norm", "_native_batch_norm_legit", "native_dropout", "convolution",
        "mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy",
        "binary_cross_entropy_with_logits", "soft_margin_loss", "nll_loss_forward",
        "nll_loss2d_forward", "avg_pool1d", "avg_pool2d", "_adaptive_avg_pool2d",
        "max_pool2d_with_indices", "_scaled_dot_product_flash_attention_for_cpu",
        # sums, extremes and products
        "sum", "mean", "prod", "var", "std", "var_mean", "std_mean", "logsumexp", "cumsum",
        "cumprod", "logcumsumexp", "norm", "linalg_vector_norm", "amax", "amin", "aminmax", "max",
        "min", "cummax", "cummin", "sort", "topk", "kthvalue", "median", "dot", "vdot", "mv", "mm",
        "bmm", "addmm", "addmv", "addbmm", "baddbmm", "addr", "trace", "linalg_cross",
        "linalg_solve_triangular",
        # places
        "view", "_unsafe_view", "_reshape_alias", "reshape", "expand", "select", "slice",
        "unsqueeze", "squeeze", "transpose", "permute", "t", "unbind", "split", "split_with_sizes",
        "cat", "stack", "alias", "as_strided", "diagonal", "diag_embed", "unfold", "flip", "roll",
        "repeat", "clone", "copy", "lift_fresh", "constant_pad_nd", "tril", "triu", "index",
        "gather", "index_select", "masked_select", "take", "where", "masked_fill", "scatter",
        "scatter_add", "index_add", "index_copy", "index_put", "_index_put_impl", "select_scatter",
        "slice_scatter", "diagonal_scatter", "_to_copy",
    )
)
"""Operations of torch that are continuous; those that only choose by numbers are, for each.

A quotient is where its divisor is not 0: whether f divides by what may become 0 is not seen.
"""

NORMS = frozenset(("norm", "linalg_vector_norm"))

SHAPE_ONLY = frozenset(
    (
        "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like",
        "randint_like", "new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided",
        "is_same_size", "zero",
    )
)
"""Operations whose result depends on shapes, not on numbers."""

READS = frozenset(
    (
        "tolist", "numpy", "__array__", "untyped_storage", "storage", "data_ptr", "__reduce_ex__",
    )
)
"""Methods by which numbers leave torch, without an operation that could be seen."""

COPIES = frozenset(
    (
        "tensor", "as_tensor", "asarray", "new_tensor",
    )
)
"""Functions that may do so too, of tensors in lists."""
# fmt: on


class Watch(TorchDispatchMode):
    """Notes what is done to the sample: `jumps` may, and by `reads` f went on without autograd."""

    def __init__(self, sample: Tensor) -> None:
        super().__init__()
        self.sample = sample
        self.jumps: set[str] = set()
        self.reads: set[str] = set()
        self.pauses = False
        self._whole: list[Tensor] = []  # integers made of the sample
        self._cut: dict[int, tuple[Tensor, str]] = {}  # its numbers without a gradient, and by what

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run the operation; note what it may do to the sample."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        given = _tensors((args, kwargs))
        live = [t for t in given if t.requires_grad]
        whole = any(t is w for t in given for w in self._whole)
        cut = next((self._cut[id(t)][1] for t in given if id(t) in self._cut), "")
        if self.pauses or name in SHAPE_ONLY or not (live or whole or cut):
            return result
        made = _tensors(result)
        counts = name in NORMS and args[1:2] == (0,)  # the numbers that are not 0
        smooth = name in SMOOTH and not counts and not (kwargs or {}).get("rounding_mode")
        if smooth and torch.is_grad_enabled() and not (whole or cut):
            self._whole += [t for t in made if not t.is_floating_point()]
        elif whole or cut or self.follows(live):
            self._leave(name, cut, live, made)
        return result

    def _leave(self, name: str, cut: str, live: list[Tensor], made: list[Tensor]) -> None:
        """Note an operation that may jump, and what becomes of numbers without a gradient."""
        quiet = not torch.is_grad_enabled()
        if name != "detach":  # autograd does that too, of results that it keeps: used, it counts
            self.jumps.add(name)
        if name == "_local_scalar_dense":
            if cut or any(t.is_floating_point() for t in live):
                self.reads.add("item")
        elif cut and live and not quiet:
            self.reads.add(cut)
        elif cut or quiet or name == "detach":
            how = cut or ("no_grad" if quiet else name)
            self._cut |= {
                id(t): (t, how) for t in made if t.is_floating_point() and not t.requires_grad
            }

    def follows(self, tensors: list[Tensor]) -> bool:
        """Return whether one of them depends on the sample."""
        return any(
            id(t) in self._cut or (t.requires_grad and depends_on(t, self.sample)) for t in tensors
        )


class _Reads(TorchFunctionMode):
    """Tells a `Watch` of methods that read numbers; those that print them are nobody's business."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run the function; note it if it read the sample."""
        name = getattr(func, "__name__", "")
        self.watch.pauses = name in ("__repr__", "__format__")
        try:
            result = func(*args, **(kwargs or {}))
        finally:
            self.watch.pauses = False
        copied = name in COPIES and not result.requires_grad
        if (name in READS or copied) and self.watch.follows(_tensors((args, kwargs))):
            self.watch.jumps.add(name)
            self.watch.reads.add(name)
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]


@contextmanager
def watching(sample: Tensor) -> Iterator[Watch]:
    """Watch what is done to `sample` in the block."""
    watch = Watch(sample)
    with _Reads(watch), watch:
        yield watch
