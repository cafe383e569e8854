"""The rules by name, without what applies them: see `interp.engine.rules`, which says what each one does."""

from __future__ import annotations

from dataclasses import dataclass, fields

from interp.errors import UsageError, unknown_name

__all__ = ["GRADIENT", "RELP", "RULE_SETS", "Rules", "rules"]

_CHOICES = {
    "norm": ("gradient", "constant", "secant"),
    "activation": ("gradient", "identity", "secant"),
    "gate": ("gradient", "half", "midpoint"),
    "attention": ("gradient", "constant", "attnlrp", "secant"),
    "linear": ("gradient", "epsilon", "gamma"),
    "router": ("gate", "gradient", "constant"),
}


@dataclass(frozen=True)
class Rules:
    """One rule for each place; the default is the plain gradient everywhere.

    Args:
        norm: ``gradient``, ``constant`` or ``secant``, for LayerNorm and RMSNorm alike.
        activation: ``gradient``, ``identity`` or ``secant``, for the MLP's activation function.
        gate: ``gradient``, ``half`` or ``midpoint``, for the product in gated MLPs.
        attention: ``gradient``, ``constant``, ``attnlrp`` or ``secant``.
        linear: ``gradient``, ``epsilon`` or ``gamma``, for every projection.
        router: ``gradient`` or ``constant``, for the weights by which a mixture's experts are added up; ``gate``:
            constant, unless `gate` is ``gradient``.
        epsilon: Of the epsilon rule, in the units of the projection's output.
        gamma: Of the gamma rule.

    Raises:
        UsageError: An unknown rule, or a negative epsilon or gamma.
    """

    norm: str = "gradient"
    activation: str = "gradient"
    gate: str = "gradient"
    attention: str = "gradient"
    linear: str = "gradient"
    router: str = "gate"
    epsilon: float = 1e-6
    gamma: float = 0.25

    def __post_init__(self) -> None:
        for place, known in _CHOICES.items():
            if getattr(self, place) not in known:
                raise unknown_name(f"rule for {place}", str(getattr(self, place)), known)
        if self.epsilon < 0 or self.gamma < 0:
            raise UsageError(f"epsilon and gamma must not be negative, got {self.epsilon} and {self.gamma}")

    @property
    def two_runs(self) -> bool:
        """Whether a rule looks at the other prompt's run, too."""
        return "secant" in (self.norm, self.activation, self.attention) or self.gate == "midpoint"

    @property
    def holds_router(self) -> bool:
        """Whether nothing flows back through a router's weights."""
        return self.router == "constant" or (self.router == "gate" and self.gate != "gradient")

    def __str__(self) -> str:
        changed = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if getattr(self, f.name) != f.default]
        return ", ".join(changed) or "gradient"


GRADIENT = Rules()
RELP = Rules(norm="constant", activation="identity", gate="half")
RULE_SETS = {
    "gradient": GRADIENT,
    "relp": RELP,
    "relp-frozen-attention": Rules(norm="constant", activation="identity", gate="half", attention="constant"),
    "attnlrp": Rules(norm="constant", activation="identity", gate="half", attention="attnlrp"),
    "relp+secant-mlp": Rules(norm="constant", activation="secant", gate="midpoint"),
    "secant": Rules(norm="secant", activation="secant", gate="midpoint", attention="secant"),
}
"""Rule sets by name. `relp` is RelP's published default; those with `secant` look at both runs."""


def rules(name_or_rules: str | Rules) -> Rules:
    """A rule set by its name, or the given one.

    Raises:
        UsageError: No rule set has that name.
    """
    if isinstance(name_or_rules, Rules):
        return name_or_rules
    if name_or_rules not in RULE_SETS:
        raise unknown_name("rule set", name_or_rules, RULE_SETS)
    return RULE_SETS[name_or_rules]
