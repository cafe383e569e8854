"""Linear layers whose weights are stored as codes, one class for each way of multiplying.

What a layer writes to files is the same on every processor; what the kernel wants is made from it when it is read.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.efficiency.quantization import kernels
from interp.efficiency.quantization.codes import Codes, Scheme
from interp.efficiency.quantization.kept import Kept

__all__ = ["CodedEmbedding", "CodedLinear", "Int4Linear", "Int8BothLinear", "Int8Linear", "coded_linear", "has_kernel"]


class CodedLinear(nn.Module):
    """Weights are turned back into numbers at every call: nothing is faster, the bytes are saved.

    Args:
        made: The weights' codes.
        bias: The layer's own.
        inverse: What inputs are multiplied by, where weights were scaled the other way: "input".
        low_rank: What makes up for the error: "output rank" and "rank input".
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    inverse: Tensor | None
    left: Tensor | None
    right: Tensor | None

    def __init__(
        self,
        made: Codes,
        bias: Tensor | None = None,
        inverse: Tensor | None = None,
        low_rank: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.scheme = made.scheme
        rows, columns = made.codes.shape
        self.out_features, self.in_features = (columns, rows) if made.scheme.axis == "output" else (rows, columns)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.kept: Kept | None = None
        self.register_buffer("inverse", inverse)
        left, right = low_rank or (None, None)
        self.register_buffer("left", left)
        self.register_buffer("right", right)
        self.store(made)

    def store(self, made: Codes) -> None:
        """Keeps the codes."""
        self.register_buffer("codes", _halved(made.codes) if self.scheme.bits == 4 else made.codes)
        self.register_buffer("scale", made.scale)
        self.register_buffer("zero", made.zero)

    def stored(self) -> Codes:
        """The codes that it keeps."""
        columns = self.out_features if self.scheme.axis == "output" else self.in_features
        codes = _whole(self.codes, columns) if self.scheme.bits == 4 else self.codes
        return Codes(codes, self.scale, self.zero, self.scheme)

    def decoded(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "output input"]:
        """The weights that stand in the codes, before `inverse`."""
        return self.stored().decoded(dtype)

    @property
    def weight(self) -> Float[Tensor, "output input"]:
        """The weights that inputs are multiplied by, all told."""
        found = self.decoded()
        if self.inverse is not None:
            found = found * self.inverse.float()
        return found if self.left is None else found + self.left.float() @ self.right.float()  # type: ignore[union-attr]

    @property
    def products(self) -> int:
        """Multiplications of a token's pass."""
        beside = 0 if self.left is None else self.left.shape[1] * (self.in_features + self.out_features)
        return self.in_features * self.out_features + beside

    def twin(self) -> CodedLinear:
        """Another module on the same tensors."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        for name in ("_buffers", "_parameters", "_modules"):
            other.__dict__[name] = dict(self.__dict__[name])
        return other

    def forward(self, x: Float[Tensor, "*token input"]) -> Float[Tensor, "*token output"]:
        scaled = x if self.inverse is None else x * self.inverse
        y = self.product(scaled)
        if self.left is not None and self.right is not None:
            y = y + F.linear(F.linear(x.to(self.right.dtype), self.right), self.left)
        return (y if self.bias is None else y + self.bias).to(x.dtype)

    def product(self, x: Float[Tensor, "*token input"]) -> Float[Tensor, "*token output"]:
        """Without the bias."""
        flat = x.reshape(-1, x.shape[-1])
        y = self.few(flat.bfloat16()) if self.most and len(flat) <= self.most else self.dense(flat)
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    @property
    def most(self) -> int:
        """Tokens up to which there is a kernel, where the weights are, that is faster; 0 for none."""
        return 0

    def few(self, x: Tensor) -> Tensor:
        """By a kernel, for few tokens in bfloat16, where a format has one; else as for many."""
        return self.dense(x)

    def dense(self, x: Float[Tensor, "token input"]) -> Float[Tensor, "token output"]:
        """By weights turned back into numbers, for many."""
        dtype = kernels.dense_dtype() if x.is_cpu else x.dtype
        return F.linear(x.to(dtype), self.decoded(dtype))

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}: {self.scheme.words()}"


class Int8Linear(CodedLinear):
    """8 bits, a scale for each output channel; `torch._weight_int8pack_mm` for few tokens."""

    def store(self, made: Codes) -> None:
        self.register_buffer("codes", (made.codes.to(torch.int16) - 128).to(torch.int8))
        self.register_buffer("scale", made.scale)
        self.register_buffer("zero", None)

    @property
    def most(self) -> int:
        return kernels.FEW["int8"] if kernels.takes("int8", self.in_features, self.codes.device) else 0

    def stored(self) -> Codes:
        return Codes((self.codes.to(torch.int16) + 128).to(torch.uint8), self.scale, None, self.scheme)

    def _load_from_state_dict(self, *others: Any) -> None:
        super()._load_from_state_dict(*others)
        self.codes = kernels.aligned(self.codes)

    def few(self, x: Tensor) -> Tensor:
        return kernels.int8_mm(x, self.codes, self.scale[:, 0].bfloat16())

    def dense(self, x: Tensor) -> Tensor:
        dtype = kernels.dense_dtype() if x.is_cpu else x.dtype
        return F.linear(x.to(dtype), self.codes.to(dtype)) * self.scale[:, 0].to(dtype)


class Int8BothLinear(Int8Linear):
    """8 bits for weights and for inputs, multiplied as integers by `torch._int_mm`.

    Inputs of the tokens in `kept` stay as they are. The arithmetic of scales is in float32: in bfloat16, 127 times a
    scale rounds to 128 scales, which is not in 8 bits.
    """

    def product(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).float()
        kept, left_out = (None, None) if self.kept is None else self.kept.rows(x)
        scale = self.input_scale(flat, x, left_out)
        codes = (flat / scale).round_().clamp_(-127, 127).to(torch.int8)
        if kernels.takes("int8_both", self.in_features, x.device):
            sums = kernels.int8_both_mm(codes, self.codes)
        else:
            sums = codes.double() @ self.codes.double().T
        y = sums.float().mul_(scale).mul_(self.scale[:, 0].float())
        if kept is not None:
            y[kept] = super().product(flat[kept])
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def input_scale(self, flat: Tensor, x: Tensor, left_out: Tensor | None) -> Tensor:
        """The scale of each token's inputs: "token 1"."""
        size = flat.abs().amax(-1, keepdim=True)
        if self.scheme.activations == "sequence" and x.ndim == 3:
            if left_out is not None:
                size = size.masked_fill(left_out[:, None], 0)
            size = size.view(x.shape[0], -1).amax(1).repeat_interleave(x.shape[1])[:, None]
        return size.clamp_(min=1e-8).div_(127)


class Int4Linear(CodedLinear):
    """4 bits in groups along the inputs; `torch._weight_int4pack_mm_for_cpu` for few tokens."""

    packed: Tensor
    scales: Tensor

    @property
    def most(self) -> int:
        return kernels.FEW["int4"] if self.packed.is_cpu else 0  # there is none of these without its kernel

    def store(self, made: Codes) -> None:
        assert made.zero is not None
        missing = -made.codes.shape[0] % kernels.BLOCK
        both = torch.stack([made.scale, made.zero], -1).transpose(0, 1)
        self.register_buffer("packed", kernels.pack4(F.pad(made.codes, (0, 0, 0, missing))), persistent=False)
        self.register_buffer("scales", F.pad(both, (0, 0, 0, missing)).contiguous(), persistent=False)

    def stored(self) -> Codes:
        codes = kernels.unpack4(self.packed).transpose(1, 2).reshape(-1, self.in_features)[: self.out_features]
        scale, zero = self.scales[:, : self.out_features].transpose(0, 1).unbind(-1)
        return Codes(codes.contiguous(), scale.contiguous(), zero.contiguous(), self.scheme)

    def few(self, x: Tensor) -> Tensor:
        group = self.in_features // self.scales.shape[0]
        return kernels.int4_mm(x, self.packed, group, self.scales.bfloat16())[:, : self.out_features]

    def decoded(self, dtype: torch.dtype = torch.float32) -> Tensor:
        codes, groups = kernels.unpack4(self.packed), self.scales.shape[0]
        by_block = self.scales.to(dtype).view(groups, -1, 1, kernels.BLOCK, 2).transpose(0, 1)
        scale, zero = (one.contiguous() for one in by_block.unbind(-1))
        numbers = codes.to(dtype).sub_(8).view(len(codes), groups, -1, kernels.BLOCK)
        found = torch.addcmul(zero, numbers, scale).view(len(codes), self.in_features, kernels.BLOCK)
        return found.transpose(0, 1).reshape(self.in_features, -1)[:, : self.out_features].T

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        made = self.stored()
        for name, tensor in (("codes", _halved(made.codes)), ("scale", made.scale), ("zero", made.zero)):
            destination[prefix + name] = tensor

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        found = {name: state_dict.pop(prefix + name, None) for name in ("codes", "scale", "zero")}
        super()._load_from_state_dict(state_dict, prefix, *others)
        if all(tensor is not None for tensor in found.values()):
            codes = _whole(found["codes"], self.in_features)
            self.store(Codes(codes, found["scale"], found["zero"], self.scheme))


class CodedEmbedding(nn.Module):
    """An embedding that reads the codes of the output layer that it is tied to.

    Args:
        head: The output layer.
        like: The embedding as it was: its dtype, and what it multiplies by, if it does.
    """

    like: Tensor

    def __init__(self, head: Int8Linear, like: nn.Module) -> None:
        super().__init__()
        self._heads = (head,)  # in a tuple, so that it is not a module of this one as well
        weight: Any = like.weight
        self.register_buffer("like", torch.empty(0, dtype=weight.dtype))
        multiplier: Any = getattr(like, "embed_scale", None)
        self.multiplier = None if multiplier is None else float(multiplier)

    @property
    def weight(self) -> Float[Tensor, "vocab d_model"]:
        """The embedding's numbers."""
        return self._heads[0].decoded(self.like.dtype)

    def forward(self, tokens: Int[Tensor, "*token"]) -> Float[Tensor, "*token d_model"]:
        head, dtype = self._heads[0], self.like.dtype
        found = head.codes[tokens].to(dtype) * head.scale[tokens].to(dtype)
        return found if self.multiplier is None else found * torch.tensor(self.multiplier, dtype=dtype)


def has_kernel(scheme: Scheme, inputs: int, device: torch.device | str = "cpu") -> bool:
    """Whether a layer of this scheme runs on a kernel of the device."""
    made = _class_of(scheme, inputs, device)
    return made is Int4Linear or (
        made is not CodedLinear and kernels.takes("int8_both" if made is Int8BothLinear else "int8", inputs, device)
    )


def coded_linear(made: Codes, *others: Any) -> CodedLinear:
    """The layer of some codes, on a kernel where there is one.

    Args:
        made: The codes.
        *others: As `CodedLinear` takes them.
    """
    inputs = made.codes.shape[0 if made.scheme.axis == "output" else 1]
    return _class_of(made.scheme, inputs, made.codes.device)(made, *others)


def _class_of(scheme: Scheme, inputs: int, device: torch.device | str) -> type[CodedLinear]:
    if scheme.format == "symmetric" and scheme.bits == 8 and scheme.group is None and scheme.axis == "input":
        return Int8Linear if scheme.activations is None else Int8BothLinear
    whole = scheme.group or inputs
    packs = scheme.format == "affine" and scheme.bits == 4 and scheme.axis == "input" and whole in (32, 64, 128, 256)
    return Int4Linear if packs and kernels.takes("int4", inputs, device) else CodedLinear


def _halved(codes: Tensor) -> Tensor:
    """Two codes of 4 bits in a byte, along the columns."""
    if codes.shape[1] % 2:
        codes = F.pad(codes, (0, 1))
    return codes[:, ::2] | (codes[:, 1::2] << 4)


def _whole(halves: Tensor, columns: int) -> Tensor:
    return torch.stack([halves & 15, halves >> 4], -1).flatten(-2)[:, :columns]
