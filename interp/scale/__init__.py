"""The same calls on the workers of a Ray cluster: ``with interp.scale.over("ray://host:10001"): ...``."""

from typing import TYPE_CHECKING

from interp._lazy import lazy

if TYPE_CHECKING:
    from interp.scale.cluster import Cluster, over

__all__ = ["Cluster", "over"]

lazy(__name__)
