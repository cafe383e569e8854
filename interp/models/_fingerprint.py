"""A short name for exactly these weights."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["fingerprint"]

_CONFIG = (
    "architecture",
    "n_layers",
    "n_heads",
    "n_key_value_heads",
    "d_model",
    "d_head",
    "d_mlp",
    "d_vocab",
    "act_fn",
    "normalization_type",
    "eps",
    "positional_embedding_type",
    "rotary_base",
    "rope_parameters",
    "sliding_window",
    "layer_types",
    "attn_scores_soft_cap",
    "output_logits_soft_cap",
)
_LENGTH = 16


def fingerprint(model: TransformerBridge) -> str:
    """A digest of what the model computes: the config's essentials and every weight's bytes.

    The same weights give the same digest in every process, on every device and whatever the model
    was called when it was loaded; one changed element of one tensor gives another one. It reads all
    weights, about 0.5 s for 135 million float32 parameters.

    Args:
        model: any bridge.

    Returns:
        16 hexadecimal characters of a SHA-256.
    """
    import torch

    digest = hashlib.sha256(json.dumps(_essentials(model.cfg), sort_keys=True, default=str).encode())
    for name, weight in sorted(_weights(model).items()):
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode())
        plain = weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(plain.numpy().data)
    return digest.hexdigest()[:_LENGTH]


def _essentials(cfg: Any) -> dict[str, Any]:
    return {name: getattr(cfg, name, None) for name in _CONFIG}


def _weights(model: TransformerBridge) -> dict[str, Any]:
    """Each parameter once, tied ones under their first name, without the bridge's wrapper names."""
    from interp.upstream import WRAPPER

    return {name.replace(WRAPPER, ""): weight for name, weight in model.named_parameters()}
