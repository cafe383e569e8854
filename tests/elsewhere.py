"""A second device without an accelerator: tensors on `ELSEWHERE` are tensors of the processor that say they are not.

Inside `Elsewhere` a tensor's storage carries a mark. `.device` tells the mark, `.to` and factories with a device set
it, and every operation that CUDA would refuse is refused: tensors of both places in one operation (but for scalars of
no dimension, indices into a tensor elsewhere, and copies from place to place), and numpy on a tensor elsewhere. The
operations of a backward pass are seen too. Transfers are counted, with what they moved.
"""

from __future__ import annotations

import types

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode, _push_mode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

ELSEWHERE = torch.device("privateuseone:0")
CPU = torch.device("cpu")

# what torch asks a device for: its types for autocast, and the memory that it has free
_module = types.ModuleType("privateuseone")
_module.get_amp_supported_dtype = lambda: [torch.bfloat16]
_module._is_in_bad_fork, _module.manual_seed_all = lambda: False, lambda seed: None
_module.mem_get_info = lambda device=None: (1 << 30, 2 << 30)
if not hasattr(torch, "privateuseone"):
    torch._register_device_module("privateuseone", _module)

_aten = torch.ops.aten
_INDEXED = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_BETWEEN = {_aten.copy_.default, _aten._to_copy.default}
_MOVES = {torch.Tensor.cpu, torch.Tensor.to}
_WAITS = {_aten._local_scalar_dense.default, _aten.nonzero.default, _aten.equal.default, _aten.masked_select.default}


class MixedDevices(RuntimeError):
    """What CUDA says of tensors on two devices in one operation."""


class Elsewhere(TorchFunctionMode):
    """While it is entered, `ELSEWHERE` is a device; models and tensors get there by `.to(ELSEWHERE)`.

    Attributes:
        transfers: Moves between the places, as (from, to, bytes).
        waits: Times that the processor had to wait for a result from elsewhere, transfers left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.transfers: list[tuple[str, str, int]] = []
        self.waits = 0
        self._watch = _Watch(self)

    def __enter__(self) -> Elsewhere:
        self._watch.__enter__()
        self._engine = torch.autograd._engine_run_backward
        torch.autograd._engine_run_backward = self._backward
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        torch.autograd._engine_run_backward = self._engine
        self._watch.__exit__(*error)

    def _backward(self, *args, **kwargs):
        # a mode is off while a function that it caught runs, and backward passes are such functions
        if self in _get_current_function_mode_stack():
            return self._engine(*args, **kwargs)
        _push_mode(self)
        try:
            return self._engine(*args, **kwargs)
        finally:
            _pop_mode()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__":
            return self._attribute(func, args[0])
        if name in ("numpy", "__array__") and lies_elsewhere(args[0]):
            raise TypeError(f"can't convert a tensor on {ELSEWHERE} to numpy; use Tensor.cpu() first")
        if func in _MOVES:
            return self._moved(func, args, kwargs)
        wanted = kwargs.get("device")
        if wanted is None:
            return func(*args, **kwargs)
        there = _is_elsewhere(wanted)
        generator = kwargs.get("generator")
        if there and generator is not None:
            raise RuntimeError(f"Expected a '{ELSEWHERE.type}' device type for generator but found 'cpu'")
        like = next((x for x in args if isinstance(x, Tensor)), None)
        if there:
            kwargs["device"] = CPU
        if like is not None and name in ("as_tensor", "asarray", "tensor"):
            return self._to(like.detach() if name == "tensor" else like, there, kwargs.get("dtype"), name == "tensor")
        out = func(*args, **kwargs)
        return tree_map_only(Tensor, lambda x: _mark(x, there), out)

    def _attribute(self, func, tensor: Tensor):
        if isinstance(tensor, Tensor) and lies_elsewhere(tensor):
            if func == torch.Tensor.device.__get__:
                return ELSEWHERE
            if func == torch.Tensor.is_cpu.__get__:
                return False
        return func(tensor)

    def _moved(self, func, args, kwargs):
        tensor, *rest = args
        kwargs = dict(kwargs)
        if func is torch.Tensor.cpu:
            return self._to(tensor, False, None, False)
        place = kwargs.pop("device", None)
        dtype = kwargs.pop("dtype", None)
        other = kwargs.pop("other", None)
        for x in rest:
            if isinstance(x, Tensor):
                other = x
            elif isinstance(x, torch.dtype):
                dtype = x
            elif isinstance(x, (str, torch.device)):
                place = x
        if other is not None:
            place, dtype = ELSEWHERE if lies_elsewhere(other) else CPU, other.dtype
        if place is not None and torch.device(place).type == "meta":
            return tensor.to("meta", dtype or tensor.dtype)
        there = lies_elsewhere(tensor) if place is None else _is_elsewhere(place)
        return self._to(tensor, there, dtype, bool(kwargs.get("copy", False)))

    def _to(self, tensor: Tensor, there: bool, dtype: torch.dtype | None, copy: bool) -> Tensor:
        out = tensor if dtype is None or dtype == tensor.dtype else tensor.to(dtype)
        if there != lies_elsewhere(tensor):
            names = ("cpu", "elsewhere") if there else ("elsewhere", "cpu")
            self.transfers.append((*names, tensor.numel() * tensor.element_size()))
            return _Move.apply(out, there)
        return out.clone() if copy and out is tensor else out


class _Watch(TorchDispatchMode):
    """Refuses what mixes places, and marks what an operation gives."""

    def __init__(self, counts: Elsewhere) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        marks = [lies_elsewhere(x) for x in tensors]
        out = func(*args, **kwargs)
        if not any(marks):
            return out
        if isinstance(kwargs.get("generator"), torch.Generator):
            raise RuntimeError(f"Expected a '{ELSEWHERE.type}' device type for generator but found 'cpu'")
        self.counts.waits += func in _WAITS
        _refuse_kernels(func, tensors)
        if func in _BETWEEN:
            there = marks[0]
        else:
            seen = [tensors[0], *(x for x in args[2:] if isinstance(x, Tensor))] if func in _INDEXED else tensors
            here = [x for x in seen if x.dim() > 0 and not x.is_meta and not lies_elsewhere(x)]
            if here:
                named = zip(tensors, marks, strict=True)
                shapes = ", ".join(f"{tuple(x.shape)} {'elsewhere' if there else 'cpu'}" for x, there in named)
                raise MixedDevices(f"{func}: expected all tensors to be on the same device, found {shapes}")
            there = any(lies_elsewhere(x) for x in seen)
        if there:
            tree_map_only(Tensor, lambda x: _mark(x, True), out)
        return out


def _refuse_kernels(func, tensors: list[Tensor]) -> None:
    """What has a kernel for processors only, or one elsewhere that takes other sizes."""
    name = func.overloadpacket.__name__
    if name in ("_weight_int4pack_mm_for_cpu", "_convert_weight_to_int4pack_for_cpu"):
        raise NotImplementedError(f"{name} has no kernel on {ELSEWHERE}")
    if name == "_int_mm" and (tensors[0].shape[0] <= 16 or tensors[0].shape[1] % 8 or tensors[1].shape[1] % 8):
        raise RuntimeError(f"_int_mm: self.size(0) needs to be greater than 16, sizes multiples of 8, got {tensors}")


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, there):
        ctx.there = there
        return _moved_data(x, there)

    @staticmethod
    def backward(ctx, gradient):
        return _moved_data(gradient, not ctx.there), None


def _moved_data(x: Tensor, there: bool) -> Tensor:
    with torch._C._DisableTorchDispatch():
        out = x.detach().clone()
    return _mark(out, there)


def lies_elsewhere(x: Tensor) -> bool:
    """Whether a tensor is marked as one of the other device."""
    if x.is_meta:
        return False
    if x.layout is not torch.strided:
        return lies_elsewhere(x._values() if x.layout is torch.sparse_coo else x.values())
    return getattr(x.untyped_storage(), "elsewhere", False)


def _mark(x: Tensor, there: bool) -> Tensor:
    if x.layout is torch.strided:
        x.untyped_storage().elsewhere = there
    else:
        parts = (x._indices(), x._values()) if x.layout is torch.sparse_coo else ()
        if x.layout is torch.sparse_csr:
            parts = (x.crow_indices(), x.col_indices(), x.values())
        elif x.layout is torch.sparse_csc:
            parts = (x.ccol_indices(), x.row_indices(), x.values())
        for part in parts:
            _mark(part, there)
    return x


def _is_elsewhere(place) -> bool:
    return torch.device(place).type == ELSEWHERE.type
