"""Where a dictionary reads and writes: a site of a layer, and its name among TransformerLens's hooks."""

from __future__ import annotations

import re
from dataclasses import dataclass

from interp.errors import UsageError, unknown_name
from interp.graph import HOOKS, SITES, Graph

__all__ = ["MLP_IN", "PLACES", "Place", "Places", "listed", "spelled"]

MLP_IN = "mlp_in"
"""What the MLP's first matrices read: the norm's output. Transcoders read here."""

PLACES = (*SITES, MLP_IN)
"""All sites at which a dictionary can stand."""

_SPELLED = {**HOOKS, MLP_IN: "blocks.{}.mlp.hook_in"}
_SYNONYMS = {
    "blocks.{}.ln2.hook_normalized": MLP_IN,
    "blocks.{}.ln2.hook_out": MLP_IN,
    "blocks.{}.mlp.hook_out": "mlp_out",
    "blocks.{}.hook_out": "resid_post",
    "blocks.{}.hook_in": "resid_pre",
}
_SITE_OF_HOOK = {hook: site for site, hook in _SPELLED.items()} | _SYNONYMS


@dataclass(frozen=True)
class Place:
    """One site of one layer.

    Args:
        site: One of `PLACES`: ``resid_pre``, ``resid_post``, ``mlp_out``, ``attn_out``, ``z`` (heads concatenated), ...
        layer: The block, from 0.

    Raises:
        UsageError: No such site, or a negative layer.
    """

    site: str
    layer: int

    def __post_init__(self) -> None:
        if self.site not in PLACES:
            raise unknown_name("site", self.site, PLACES)
        if self.layer < 0:
            raise UsageError(f"a layer is counted from 0, got {self.layer}")

    @classmethod
    def parse(cls, text: str) -> Place:
        """Reads ``resid_post.15`` or TransformerLens's ``blocks.15.hook_resid_post``.

        Raises:
            UsageError: The text is neither.
        """
        if match := re.fullmatch(r"([a-z_]+)\.(\d{1,9})", text):
            return cls(match[1], int(match[2]))
        if match := re.fullmatch(r"blocks\.(\d{1,9})\.(.+)", text):
            hook = f"blocks.{{}}.{match[2]}"
            if hook in _SITE_OF_HOOK:
                return cls(_SITE_OF_HOOK[hook], int(match[1]))
            raise unknown_name("hook", text, [name.format(match[1]) for name in _SITE_OF_HOOK])
        raise UsageError(f"{text!r} names no place; write resid_post.15 or blocks.15.hook_resid_post")

    @property
    def hook(self) -> str:
        """TransformerLens's name: ``Place("resid_post", 15).hook == "blocks.15.hook_resid_post"``."""
        return _SPELLED[self.site].format(self.layer)

    def __str__(self) -> str:
        return f"{self.site}.{self.layer}"

    def width(self, graph: Graph) -> int:
        """How wide an activation is here, heads concatenated.

        Raises:
            UsageError: The model has no such layer or site, or the site holds no vector of the token (``pattern``).
        """
        if self.site == "pattern":
            raise UsageError("a dictionary can't stand at pattern: its width is the length of the text")
        if self.site != MLP_IN:
            graph.hook(self.site, self.layer)
        elif not self.layer < graph.n_layers:
            raise UsageError(f"layer {self.layer} is out of range: the model has layers 0 to {graph.n_layers - 1}")
        per_head = {"q": graph.n_heads, "z": graph.n_heads, "k": graph.n_kv_heads, "v": graph.n_kv_heads}
        if self.site in per_head:
            return per_head[self.site] * graph.d_head
        return graph.d_mlp if self.site == "post" else graph.d_model


Places = Place | tuple[Place, ...]
"""One place, or several whose activations stand side by side."""


def listed(places: Places) -> tuple[Place, ...]:
    """The places of a dictionary, one or several."""
    return (places,) if isinstance(places, Place) else places


def spelled(places: Places | None) -> str | list[str] | None:
    """Places as text, for files."""
    if places is None:
        return None
    return str(places) if isinstance(places, Place) else [str(place) for place in places]
