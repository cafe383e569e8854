"""The main job: what `interp demo` does, one page for each part."""

from typing import TYPE_CHECKING

from interp._lazy import lazy

if TYPE_CHECKING:
    from interp.demo.attention import attend
    from interp.demo.behaviour import locate
    from interp.demo.cheaper import cheapen
    from interp.demo.pages import demonstrate
    from interp.demo.tracing import trace_page

__all__ = ["attend", "cheapen", "demonstrate", "locate", "trace_page"]

lazy(__name__)
