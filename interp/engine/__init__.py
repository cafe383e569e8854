"""Running a model for an analysis: the only place that does. See `forward`, `sweep` and `parts`."""

from typing import TYPE_CHECKING

from interp._lazy import lazy

if TYPE_CHECKING:
    from interp.engine.forward import Recorder, Visitor, Walk, run
    from interp.engine.parts import Parts, parts_of
    from interp.engine.sweep import Patch, Reading, Sweep
    from interp.engine.verify import verified

__all__ = ["Parts", "Patch", "Reading", "Recorder", "Sweep", "Visitor", "Walk", "parts_of", "run", "verified"]

lazy(__name__)
