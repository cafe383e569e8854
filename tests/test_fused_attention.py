"""A pattern that nobody wants is never made, and what heads give is the same but for rounding."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, tiny

from interp.engine.forward import Recorder, Walk
from interp.engine.parts import parts_of

TOKENS = torch.randint(4, 50, (2, 14), generator=torch.Generator().manual_seed(0))
SITES = {"resid_pre", "z", "k_rotated", "v", "resid_post"}


class Blind(Recorder):
    """Keeps sites, and refuses to see a pattern."""

    needs_pattern = False

    def visit(self, layer, site, first, x):
        assert site != "pattern"
        return super().visit(layer, site, first, x)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "gemma2"])
@torch.no_grad()
def test_heads_give_what_they_give_by_their_patterns(family):
    parts = parts_of(tiny(family))
    walk, seen, blind = Walk(parts, TOKENS.shape[1]), Recorder(SITES), Blind(SITES)
    finals = [walk(walk.embed(TOKENS), visitor) for visitor in (seen, blind)]
    torch.testing.assert_close(*finals, atol=1e-5, rtol=1e-5)
    for at, x in seen.kept.items():
        torch.testing.assert_close(blind.kept[at], x, atol=1e-5, rtol=1e-5)
    start = 9

    def earlier(layer, rows):
        return seen.kept["k_rotated", layer][:, :start], seen.kept["v", layer][:, :start]

    later = walk(walk.embed(TOKENS)[:, start:], Blind(SITES), start=start, earlier=earlier)
    torch.testing.assert_close(later, finals[0][:, start:], atol=1e-5, rtol=1e-5)
    last = walk(walk.embed(TOKENS), Blind(SITES), read_from=11)
    torch.testing.assert_close(last, finals[0][:, 11:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_cap_on_scores_needs_the_pattern():
    parts = parts_of(tiny("gemma2"))
    walk = Walk(parts, TOKENS.shape[1])

    class Unwanted(Recorder):
        needs_pattern = False

    finals = [walk(walk.embed(TOKENS), visitor) for visitor in (Recorder(SITES), Unwanted(SITES))]
    assert torch.equal(*finals)


def test_a_gradient_goes_through_the_pattern():
    parts = parts_of(tiny("llama"))
    walk, recorder = Walk(parts, TOKENS.shape[1]), Recorder({"pattern"})
    recorder.needs_pattern = False
    walk(walk.embed(TOKENS), recorder)
    assert len(recorder.kept) == parts.graph.n_layers
