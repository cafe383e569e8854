"""Effects of nodes on a behaviour.

One convention everywhere: an effect is the patched metric minus the baseline's, in the metric's units.
*Denoising* patches clean activations into the corrupted prompts (baseline: corrupted); *noising* patches the other
way (baseline: clean). `interp.results.normalised` puts both on the scale where 0 is the corrupted baseline and 1
the clean one. For a metric that is higher on clean prompts (`higher_is_clean`), positive means "pushes towards the
clean answer".
"""

from typing import TYPE_CHECKING

from interp._lazy import lazy

if TYPE_CHECKING:
    from interp.patching.activation import activation, groups, intervene
    from interp.patching.agreement import agreement
    from interp.patching.atp_star import atp_star
    from interp.patching.attribution import attribution
    from interp.patching.baselines import performance
    from interp.patching.features import feature_effects, feature_groups

__all__ = [
    "activation",
    "agreement",
    "atp_star",
    "attribution",
    "feature_effects",
    "feature_groups",
    "groups",
    "intervene",
    "performance",
]

lazy(__name__)
