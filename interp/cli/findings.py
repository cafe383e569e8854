"""What commands that end in a finding share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["write_finding"]


def write_finding(finding: Any, scores: Any, directory: Path) -> list[str]:
    """Writes a finding, its table and a heatmap of its scores; returns the files' names."""
    import interp
    from interp.results.files import write_text
    from interp.results.folders import together

    with together(directory) as aside:
        interp.results.save(finding, aside)
        write_text(aside / "scores.csv", finding.to_frame().to_csv(index=False))
        interp.plots.save(scores, aside / "heatmap.html")
        interp.plots.save(scores, aside / "heatmap.png")
    return ["finding.json", "finding.safetensors", "scores.csv", "heatmap.html", "heatmap.png"]
