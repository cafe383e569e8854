"""What sparse prefill loses: attention mass, attention's output, loss on a text, and keys asked for in one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from interp.efficiency.quality import Keys
from interp.efficiency.sparse_attention.blocks import BlockList
from interp.efficiency.sparse_attention.gathered import dense, gathered
from interp.efficiency.sparse_attention.observing import observe
from interp.efficiency.sparse_attention.patterns import View, pattern
from interp.efficiency.sparse_attention.plan import PrefillPlan

__all__ = ["KeysInOneGo", "kept_attention", "kept_mass", "text_loss"]


class KeysInOneGo(Keys):
    """Keys whose question stands in the same prompt as the context, so that it is read sparsely, too.

    `Keys` asks behind the prompt, where everything is attended: it measures what sparse reading left in the cache.
    Arguments and numbers as of `interp.efficiency.Keys`.
    """

    def __init__(self, keys: int = 1, length: int = 1024, n: int = 12, **options: Any) -> None:
        super().__init__(keys, length, n, **options)
        self.name = f"keys{keys} in one go"

    @staticmethod
    def _answer(
        model: PreTrainedModel, parts: Sequence[tuple[int, ...]], right: Int[Tensor, " token"]
    ) -> Float[Tensor, "token vocab"]:
        return Keys._answer(model, [tuple(token for part in parts for token in part)], right)


def kept_attention(model: PreTrainedModel, plan: PrefillPlan, tokens: Int[Tensor, "row pos"]) -> pd.DataFrame:
    """What a plan keeps of each head's attention, on the dense model's own queries and keys.

    So each layer is judged by itself: no error is carried from layer to layer, see `text_loss` for that.

    Args:
        model: A deployed model, the plan not in force.
        plan: The plan.
        tokens: Texts.

    Returns:
        One row a head, means over the texts: ``layer``, ``head``, ``mass``, the share of the attention on what is
        computed, averaged over queries; ``density``, the share of the causal blocks that is computed; ``error``, the
        length of the difference of the head's outputs, as a share of the outputs' length.
    """
    plan.check(model)
    rules = {(layer, head): plan.rules[index] for layer, head, index in plan.heads}
    rows: list[dict[str, Any]] = []

    def see(view: View, values: Tensor) -> None:
        for at, head in enumerate(view.heads):
            if (rule := rules.get((view.layer, head))) is None:
                continue
            mine = replace(view, query=view.query[at : at + 1], kv=view.kv[at : at + 1], heads=(head,))
            chosen = pattern(rule).select(mine)
            given = (mine.query, mine.keys, values, mine.kv)
            true = dense(*given, view.block, view.scaling, view.softcap)
            found = gathered(*given, chosen, view.scaling, view.softcap)
            row = {"mass": float(kept_mass(mine, chosen)), "density": float(chosen.density())}
            error = float((found - true).float().norm() / true.float().norm())
            rows.append({"layer": view.layer, "head": head, **row, "error": error})

    observe(model, tokens, plan.block, see)
    return pd.DataFrame(rows).groupby(["layer", "head"], as_index=False).mean()


def kept_mass(view: View, chosen: BlockList) -> Float[Tensor, " head"]:
    """The share of each head's attention that falls on what is computed, averaged over queries."""
    found = view.query.new_zeros(len(view.kv), dtype=torch.float64)
    keys = view.keys[list(view.kv)]
    for at in range(chosen.query_blocks):
        start, stop = chosen.queries(at)
        scores = view.scores(view.query[:, start - view.first : stop - view.first], keys[:, :stop])
        where = torch.arange(stop, device=scores.device)
        attention = scores.masked_fill(where > where[start:, None], float("-inf")).softmax(-1).sum(1)
        for heads, positions in chosen.rows(at):
            kept = torch.from_numpy(positions).to(scores.device)
            found[heads] += attention[heads][:, kept].sum(-1).double()
    return found / view.query.shape[1]


@torch.no_grad()
def text_loss(model: PreTrainedModel, tokens: Int[Tensor, "row pos"], skip: int = 0) -> float:
    """Mean next-token cross-entropy in nats of texts read in one go, on whatever plans are in force.

    Args:
        model: A deployed model.
        tokens: The texts.
        skip: Leave out the predictions of so many tokens at the start.
    """
    run: Any = model
    losses = []
    for row in tokens.to(model.device):
        logits = run(input_ids=row[None]).logits[0, skip:-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, row[skip + 1 :]))
    return float(torch.stack(losses).mean())
