"""Better codes than the nearest: GPTQ's, and low-rank matrices that make up for an error."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.efficiency.quantization.codes import Codes, Scheme, nearest, scales
from interp.errors import UsageError

__all__ = ["gptq", "low_rank", "output_error"]

_BLOCK = 128


def output_error(
    weight: Float[Tensor, "output input"],
    found: Float[Tensor, "output input"],
    square: Float[Tensor, " input"] | None,
) -> float:
    """The error of a layer's outputs, as a share of their size.

    ``sum (W' - W)^2 E[x^2] / sum W^2 E[x^2]``: what is expected of ``|W'x - Wx|^2`` if errors of different input
    channels are independent, as rounding errors nearly are.
    """
    by = 1.0 if square is None else square.to(weight.device)
    return float(((found - weight) ** 2 * by).sum() / (weight**2 * by).sum().clamp(min=1e-30))


def low_rank(
    error: Float[Tensor, "output input"], rank: int
) -> tuple[Float[Tensor, "output rank"], Float[Tensor, "rank input"]]:
    """The two matrices, in bfloat16, whose product is the best of this rank for an error.

    Reference: Yao et al. 2023, ZeroQuant-V2 (arXiv 2303.08302), section 5: ``E = U S V``, and the matrices are
    ``U sqrt(S)`` and ``sqrt(S) V``, cut to the rank. Here by the eigenvectors of the smaller of E'E and EE', which
    are V and U.
    """
    if error.is_meta:
        made = error.new_empty(error.shape[0], rank), error.new_empty(rank, error.shape[1])
        return made[0].bfloat16(), made[1].bfloat16()
    flip = error.shape[1] > error.shape[0]
    e = (error.T if flip else error).float()
    rank = min(rank, e.shape[1])
    values, vectors = torch.linalg.eigh(e.T @ e)
    values, vectors = values[-rank:].flip(0).clamp(min=1e-20), vectors[:, -rank:].flip(1)
    root = values**0.25
    left, right = (e @ vectors) / root, (root * vectors).T
    left, right = (right.T, left.T) if flip else (left, right)
    return left.bfloat16().contiguous(), right.bfloat16().contiguous()


def gptq(
    weight: Float[Tensor, "output input"], moment: Float[Tensor, "input input"], scheme: Scheme, damping: float = 0.01
) -> Codes:
    """Codes one input channel after another; what a channel's rounding spoils, the later ones make up for.

    Args:
        weight: Of a linear layer.
        moment: The mean of ``x x'`` over its inputs.
        scheme: Integers, groups along the inputs.
        damping: The share of the mean of the moment's diagonal that is added to it.

    Reference: Frantar et al. 2022, GPTQ (arXiv 2210.17323), equations 2 and 3, and algorithm 1 with its Cholesky
    form: with ``U'U`` the inverse of the moment and U upper triangular, channel j's error is
    ``(w_j - q_j) / U_jj``, and row j of U says what later channels take of it. In blocks of 128.

    Raises:
        UsageError: The group does not divide the inputs.
    """
    outputs, inputs = weight.shape
    size = scheme.group or inputs
    if inputs % size:
        raise UsageError(f"groups of {size} do not divide the {inputs} inputs")
    w = weight.float().T.clone(
        memory_format=torch.contiguous_format
    )  # "input output": what is gone through are its rows
    moment = moment.double().clone()
    dead = moment.diagonal() <= 0
    moment.diagonal()[dead] = 1
    w[dead] = 0
    moment.diagonal().add_(damping * float(moment.diagonal().mean()))
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moment)), upper=True).float()
    codes = torch.empty(inputs, outputs, dtype=torch.uint8, device=w.device)
    found_scales, zeros = [], []
    scale, zero = torch.empty(0), None
    for first in range(0, inputs, _BLOCK):
        stop = min(first + _BLOCK, inputs)
        errors = w.new_zeros(stop - first, outputs)
        for j in range(first, stop):
            if j % size == 0:
                # a group that reaches beyond the block has not had this block's errors there yet
                group = w[j : j + size].clone()
                if j > first and j + size > stop:
                    group[stop - j :] -= upper[first:j, stop : j + size].T @ errors[: j - first]
                scale, zero = scales(group.T[:, None], scheme)
                found_scales.append(scale)
                zeros.append(zero)
            code = nearest(w[j, :, None, None], scale, zero, scheme)
            codes[j] = code[:, 0, 0]
            errors[j - first] = (w[j] - _value(code, scale, zero, scheme)[:, 0, 0]) / upper[j, j]
            w[j + 1 : stop].addr_(upper[j, j + 1 : stop], errors[j - first], alpha=-1)
        w[stop:].addmm_(upper[first:stop, stop:].T, errors, alpha=-1)
    codes = codes.T.contiguous()
    zero_all = None if zeros[0] is None else torch.cat([z for z in zeros if z is not None], 1)
    return Codes(codes, torch.cat(found_scales, 1), zero_all, scheme)


def _value(code: Tensor, scale: Tensor, zero: Tensor | None, scheme: Scheme) -> Tensor:
    found = (code.float() - 2 ** (scheme.bits - 1)) * scale.float()[..., None]
    return found if zero is None else found + zero.float()[..., None]
