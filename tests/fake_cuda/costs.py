"""What operations cost on a GPU: host waits and estimated kernels. Views and allocations cost nothing."""

from __future__ import annotations

from typing import Any

import torch

aten = torch.ops.aten

WAITS = {
    aten._local_scalar_dense.default: 1, aten.nonzero.default: 1, aten.masked_select.default: 1,
    aten.bincount.default: 1, aten._unique2.default: 2, aten.unique_dim.default: 2, aten.equal.default: 1,
    aten.multinomial.default: 2,  # it checks that all weights are finite and at least 0
}  # fmt: skip
"""Host waits of operations, whatever their arguments."""

KERNELS = {
    aten.convolution_backward: 3, aten.native_layer_norm_backward: 2, aten.native_group_norm: 2,
    aten.native_group_norm_backward: 3, aten.embedding_dense_backward: 4, aten.multinomial: 8, aten.bincount: 4,
    aten.nonzero: 4, aten.sort: 4, aten.topk: 2, aten.randperm: 3, aten._unique2: 6, aten._index_put_impl_: 9,
    aten.index_put_: 9, aten.index_put: 9, aten.repeat_interleave: 2, aten.nll_loss_backward: 2, aten.cumsum: 1,
    aten._fft_r2c: 2, aten._fft_c2r: 2, aten._fft_c2c: 2,
}  # fmt: skip
"""Estimated kernels of operations; 1 of those that are not listed."""

TENSORS_PER_KERNEL = {
    "_fused_adamw_": 36, "_foreach_lerp_": 64, "_foreach_copy_": 64, "_foreach_mul_": 110, "_foreach_norm": 110,
    "_foreach_add_": 110,
}  # fmt: skip
"""Tensors that one kernel of an operation on lists processes; 64 of those that are not listed."""

FREE = {
    aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.new_empty.default,
    aten.new_empty_strided.default, aten._unsafe_view.default, aten.lift_fresh.default, aten.lift.default,
    aten._reshape_alias.default, aten.is_same_size.default, aten.set_.source_Storage,
}  # fmt: skip
INDEXING = {
    aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default, aten.index_put.default,
}  # fmt: skip
BETWEEN = {aten.copy_.default, aten._to_copy.default, aten._foreach_copy_.default, *INDEXING}
"""Operations that accept tensors of several devices."""


def is_view(func: Any) -> bool:
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def is_pointwise(func: Any) -> bool:
    return torch.Tag.pointwise in func.tags or func in (aten.masked_fill.Tensor, aten.masked_fill_.Tensor)


def kernels(func: Any, args: Any, waits: int) -> int:
    """Estimated number of kernels of an operation."""
    if is_view(func) or func in FREE:
        return 0
    name = func.overloadpacket.__name__
    if name.startswith(("_foreach", "_fused")):
        together = TENSORS_PER_KERNEL.get(name, 64) if name.startswith("_fused") or _alike(args) else 1
        return -(-len(args[0]) // together)
    masked = 4 if func is aten.index.Tensor and waits else 0  # a boolean index is converted first
    return KERNELS.get(func.overloadpacket, 1) + masked


def _alike(args: Any) -> bool:
    """Whether the tensors of each list have one number format, and corresponding tensors lie alike in memory without
    gaps. For others, an operation on lists takes a kernel for each tensor."""
    lists = [arg for arg in args if isinstance(arg, list | tuple) and arg and isinstance(arg[0], torch.Tensor)]
    if any(len({x.dtype for x in tensors}) > 1 for tensors in lists):
        return False
    for group in zip(*lists, strict=False):
        spanned = 1 + sum((n - 1) * step for n, step in zip(group[0].shape, group[0].stride(), strict=True))
        if spanned != group[0].numel() or len({x.stride() for x in group}) > 1:
            return False
    return True


def index_waits(func: Any, args: Any, kwargs: Any) -> int:
    """Host waits that depend on the arguments: of boolean indices and of repeats of unknown total."""
    if func is aten.repeat_interleave.Tensor:
        return int(kwargs.get("output_size") is None)
    if func in INDEXING:
        return sum(leaf is not None and leaf.dtype in (torch.bool, torch.uint8) for leaf in args[1])
    return 0
