"""The methods that estimate effects, by name."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["METHODS", "MODES", "SOURCES", "Method"]

MODES = ("denoising", "noising")
"""Clean activations into corrupted prompts, or the other way."""

SOURCES = ("corrupted", "zero", "mean", "resampled")
"""What a patch puts in, see `interp.patching.sources.Source`."""


@dataclass(frozen=True)
class Method:
    """A way to estimate the effects of all nodes.

    Args:
        rules: What the backward pass does: a name in `interp.engine.rules.RULE_SETS`.
        steps: 1 for the gradient at the base run; more for integrated gradients.
        along: Which way integrated gradients go: ``inputs`` or ``activations``.
        star: With AtP*'s corrections.
    """

    rules: str
    steps: int = 1
    along: str = "inputs"
    star: bool = False


METHODS = {
    "attribution": Method("gradient"),
    "relp": Method("relp"),
    "relp-frozen-attention": Method("relp-frozen-attention"),
    "attnlrp": Method("attnlrp"),
    "relp+secant-mlp": Method("relp+secant-mlp"),
    "secant": Method("secant"),
    "atp*": Method("gradient", star=True),
    "ig-inputs-5": Method("gradient", 5),
    "relp+ig-inputs-5": Method("relp", 5),
    "ig-activations-5": Method("gradient", 5, "activations"),
    "relp+ig-activations-5": Method("relp", 5, "activations"),
}
"""Methods by name, as `agreement` compares them."""
