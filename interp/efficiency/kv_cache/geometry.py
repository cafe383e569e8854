"""The shape of a model's cache: which heads of which layers, how wide, and how many bytes an entry takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel

from interp.efficiency.counting import own_windows
from interp.efficiency.deployment import deploy, deployment
from interp.errors import UsageError
from interp.upstream import key_value_heads, takes_function

__all__ = ["Geometry", "deployed", "geometry"]


@dataclass(frozen=True)
class Geometry:
    """What there is to be cached. Layers and heads carry their original numbers.

    Args:
        layers: The original number of each block that is left.
        groups: For each of them, the original numbers of its key-value heads.
        own_windows: For each of them, how many keys back it sees by design; none for all.
        head_dim: Channels of a head.
        query_heads: Query heads that share a key-value head.
        itemsize: Bytes of a number.
        context: Tokens that the model was made for.
    """

    layers: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]
    own_windows: tuple[int | None, ...]
    head_dim: int
    query_heads: int
    itemsize: int
    context: int

    @property
    def entry_bytes(self) -> int:
        """Bytes of one token's key and value in one head."""
        return 2 * self.head_dim * self.itemsize

    def entries(self, length: int) -> tuple[int, int]:
        """Entries of the whole cache behind a prompt: of layers that see a window by design, and of the others."""
        rows = [(len(heads), window) for heads, window in zip(self.groups, self.own_windows, strict=True)]
        windows = sum(heads * min(window, length) for heads, window in rows if window is not None)
        return windows, sum(heads * length for heads, window in rows if window is None)

    @property
    def compressible(self) -> list[tuple[int, int]]:
        """Layer and key-value head of those that see the whole text."""
        rows = zip(self.layers, self.groups, self.own_windows, strict=True)
        return [(layer, head) for layer, heads, window in rows if window is None for head in heads]


def deployed(model: Any) -> PreTrainedModel:
    """The model as a deployed one; a bridge is deployed."""
    if isinstance(model, TransformerBridge):
        return deploy(model)
    deployment(model)
    return model


def geometry(model: PreTrainedModel) -> Geometry:
    """The shape of a deployed model's cache.

    Raises:
        UsageError: An architecture whose attention can't be given another cache; the message names the part.
    """
    config, found = model.config.get_text_config(), deployment(model)
    name = type(model).__name__
    takes_function(model, "a plan for the cache")
    kinds = getattr(config, "layer_types", None)
    if unknown := sorted(set(kinds or ()) - {"full_attention", "sliding_attention"}):
        raise UsageError(f"{name} has layers of kind {unknown[0]!r}, which keep something else than keys and values")
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Geometry(
        layers=tuple(found.layers),
        groups=tuple(map(tuple, found.groups)),
        own_windows=tuple(own_windows(model)),
        head_dim=head_dim,
        query_heads=heads // key_value_heads(config),
        itemsize=model.dtype.itemsize,
        context=config.max_position_embeddings,
    )
