"""The matrices of attention heads, with all that is linear around them folded in.

A head reads the residual stream through a norm and writes to it, in some models through another norm. A norm is its
weight (and, for LayerNorm, the subtraction of the mean) times a scale that depends on the input. The weights and the
subtraction are folded into the matrices here; the scales are not. Of grouped-query attention every query head gets a
copy of its group's keys and values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.engine.edges import input_matrices, output_matrices
from interp.engine.forward import Walk
from interp.engine.norms import Norm
from interp.engine.parts import Parts
from interp.errors import UsageError
from interp.graph import Node

__all__ = ["Components", "HeadWeights", "head_weights", "ov_components", "parse_head", "product_svd", "rotations"]

Head = str | tuple[int, int]
"""A head written ``a3.h5`` or ``3.5``, or as layer and index."""


@dataclass(frozen=True, eq=False)
class HeadWeights:
    """The matrices of one layer's heads, for inputs that have been divided by the norm's scale and nothing else.

    Attributes:
        q, k, v: What makes queries, keys and values, with the norm's weight, its subtraction of the mean, and the
            weight of a norm on queries and keys.
        o: What each head's z is written by, with the weight of a norm behind it.
        q_bias, k_bias, v_bias: What is added, from the projection's and the norm's biases.
    """

    q: Float[Tensor, "head d_head d_model"]
    k: Float[Tensor, "head d_head d_model"]
    v: Float[Tensor, "head d_head d_model"]
    o: Float[Tensor, "head d_head d_model"]
    q_bias: Float[Tensor, "head d_head"]
    k_bias: Float[Tensor, "head d_head"]
    v_bias: Float[Tensor, "head d_head"]


@dataclass(frozen=True, eq=False)
class Components:
    """Singular components of a matrix, largest first: ``sum_i sizes[i] * outer(left[i], right[i])``.

    Attributes:
        left: For W_OV the directions written, for W_QK those that the query is read along.
        sizes: The singular values.
        right: For W_OV the directions read, for W_QK those that the key is read along.
    """

    left: Float[Tensor, "*head component d_model"]
    sizes: Float[Tensor, "*head component"]
    right: Float[Tensor, "*head component d_model"]


@torch.no_grad()
def head_weights(parts: Parts, layer: int) -> HeadWeights:
    """The matrices of a layer's heads, in float32 at least.

    Raises:
        UsageError: A layer that the model does not have.
    """
    parts.graph.check(Node("z", layer))
    graph, block = parts.graph, parts.blocks[layer]
    repeat = graph.n_heads // graph.n_kv_heads
    q, q_bias = _reading(block.ln1, block.q, graph.n_heads, 1, block.q_norm)
    k, k_bias = _reading(block.ln1, block.k, graph.n_kv_heads, repeat, block.k_norm)
    v, v_bias = _reading(block.ln1, block.v, graph.n_kv_heads, repeat, None)
    o = _wide(output_matrices(block, graph.n_heads)).clone()
    if block.ln1_post is not None:
        o = _folded(block.ln1_post, block.ln1_post.centre(o))
    return HeadWeights(q, k, v, o, q_bias, k_bias, v_bias)


@torch.no_grad()
def rotations(parts: Parts, layer: int, length: int) -> Float[Tensor, "pos d_head d_head"]:
    """The rotary embedding of each position as a matrix that acts on a query or key; identities without one.

    Where only some of the dimensions turn, the matrices leave the others as they are.
    """
    size = parts.graph.d_head
    basis = torch.eye(size, device=parts.device, dtype=parts.dtype)
    turned = Walk(parts, length)._rotate(parts.blocks[layer], basis[:, None, None].expand(-1, length, -1, -1), 0)
    return _wide(turned[:, :, 0].permute(1, 2, 0))


def product_svd(
    a: Float[Tensor, "*head d_head m"],
    b: Float[Tensor, "*head d_head n"],
    middle: Float[Tensor, "*head d_head d_head"] | None = None,
) -> Components:
    """Singular components of ``a.T @ middle @ b``, which has rank d_head at most and is never formed.

    The factors' QR decompositions leave a core of d_head by d_head, whose singular vectors the orthonormal factors
    carry back.
    """
    to_a, core_a = torch.linalg.qr(a.mT)
    to_b, core_b = torch.linalg.qr(b.mT)
    core = core_a @ core_b.mT if middle is None else core_a @ middle @ core_b.mT
    left, sizes, right = torch.linalg.svd(core, full_matrices=False)
    return Components((to_a @ left).mT, sizes, right @ to_b.mT)


def ov_components(weights: HeadWeights, head: int | slice = slice(None)) -> Components:
    """Singular components of W_OV of one head, or of all heads of the layer."""
    return product_svd(weights.o[head], weights.v[head])


def parse_head(parts: Parts, head: Head | Sequence[int]) -> tuple[int, int]:
    """Layer and index of a head written ``a3.h5`` or ``3.5``, or given as a pair.

    Raises:
        UsageError: It is no head of this model.
    """
    if isinstance(head, str):
        match = re.fullmatch(r"a?(\d{1,9})\.h?(\d{1,9})", head)
        if match is None:
            raise UsageError(f"{head!r} names no head; write a3.h5 or 3.5, or give layer and index as a pair")
        head = int(match[1]), int(match[2])
    layer, index = head
    parts.graph.check(Node("z", int(layer), int(index)))
    return int(layer), int(index)


def _reading(norm: Norm, linear, heads: int, repeat: int, own: Norm | None) -> tuple[Tensor, Tensor]:
    """A projection with the norm before it, and with the weight of the norm behind it, of each head."""
    matrices = _wide(input_matrices(linear, heads))
    given = getattr(linear, "bias", None)
    bias = matrices.new_zeros(matrices.shape[:2]) if given is None else _wide(given).unflatten(0, (heads, -1))
    if norm.bias is not None:
        bias = bias + matrices @ _wide(norm.bias)
    matrices = norm.centre(_folded(norm, matrices))
    if own is not None:
        centred = own.centre(matrices.mT) if own.centred else matrices.mT
        matrices = _folded(own, centred.movedim(1, 0)).movedim(0, 1).mT
        bias = _folded(own, own.centre(bias))
    return matrices.repeat_interleave(repeat, 0), bias.repeat_interleave(repeat, 0)


def _folded(norm: Norm, x: Tensor) -> Tensor:
    return x if norm.weight is None else x * _wide(norm.weight)


def _wide(x: Tensor) -> Tensor:
    x = x.detach()
    return x if x.dtype == torch.float64 else x.float()
