"""Findings make the model cheaper: methods make plans, plans change a deployed model, trade-offs measure them."""

from typing import TYPE_CHECKING

from interp._lazy import lazy

if TYPE_CHECKING:
    from interp.efficiency.composed import Composed
    from interp.efficiency.cost import Cost
    from interp.efficiency.deployment import Deployment, deploy, deployment
    from interp.efficiency.ledger import Amount, Ledger
    from interp.efficiency.making import make
    from interp.efficiency.plan import Plan
    from interp.efficiency.quality import Keys, Quality, Tasks, Text
    from interp.efficiency.registry import METHODS, method
    from interp.efficiency.saving import load, save
    from interp.efficiency.tradeoff import Tradeoff, tradeoff

__all__ = [
    "METHODS",
    "Amount",
    "Composed",
    "Cost",
    "Deployment",
    "Keys",
    "Ledger",
    "Plan",
    "Quality",
    "Tasks",
    "Text",
    "Tradeoff",
    "deploy",
    "deployment",
    "load",
    "make",
    "method",
    "save",
    "tradeoff",
]

lazy(__name__)
