"""Moving keys along the text: rotary embeddings turned by a number of positions."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from interp.errors import UsageError
from interp.upstream import attention_of, turning

__all__ = ["Rotation", "is_rotary", "rotation"]


class Rotation:
    """Turns keys by positions.

    Args:
        frequencies: How far each pair of channels turns for one position, in radians: "pair".
        adjacent: Pairs are neighbours (Cohere, GPT-J), instead of channels half of all that turn apart.
    """

    def __init__(self, frequencies: Float[Tensor, " pair"], adjacent: bool = False) -> None:
        self.frequencies, self.adjacent = frequencies.float(), adjacent

    def __call__(self, keys: Float[Tensor, "row kv_head entry d"], by: Any) -> Float[Tensor, "row kv_head entry d"]:
        """The keys as they were if their tokens stood `by` positions later, an integer or one for each row."""
        if not isinstance(by, Tensor):
            if by == 0:
                return keys
            by = torch.tensor([by])
        angle = by.to(keys.device).double()[:, None] * self.frequencies.to(keys.device).double()
        cos, sin = angle.cos().float()[:, None, None], angle.sin().float()[:, None, None]
        half = self.frequencies.numel()
        both, rest = keys.split([2 * half, keys.shape[-1] - 2 * half], -1)
        first, second = (both[..., ::2], both[..., 1::2]) if self.adjacent else both.chunk(2, -1)
        turned = first * cos - second * sin, second * cos + first * sin
        whole = torch.stack(turned, -1).flatten(-2) if self.adjacent else torch.cat(turned, -1)
        return torch.cat([whole.to(keys.dtype), rest], -1)


def rotation(model: PreTrainedModel, layer: int) -> Rotation:
    """How keys of a layer, by its number among those that are left, are moved; not at all where it turns nothing.

    Raises:
        UsageError: Positions are not rotary; the message names the model's class.
    """
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    kind = kinds[layer] if kinds else ""
    if (found := _frequencies(model, kind)) is not None:
        attention = attention_of(model, layer)
        together = "halves" if attention is None else turning(attention)
        return Rotation(found[:0] if together is None else found, together == "adjacent")
    raise UsageError(
        f"positions='reindexed' needs rotary embeddings to move keys by, {type(model).__name__} has none; "
        "use positions='kept'"
    )


def is_rotary(model: PreTrainedModel) -> bool:
    """Whether positions are rotary embeddings, which go on beyond the context that a model was made for."""
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or [""]
    return _frequencies(model, kinds[0]) is not None


def _frequencies(model: PreTrainedModel, kind: str) -> Tensor | None:
    for module in model.modules():
        for name in (f"{kind}_inv_freq", "inv_freq"):
            if isinstance(found := getattr(module, name, None), Tensor):
                return found
        if isinstance(table := getattr(module, "embed_positions", None), Tensor):  # GPT-J: sines, then cosines
            sin, cos = table[1].chunk(2)
            return torch.atan2(sin, cos)
    return None
