"""A run on indirect objects, taken apart by head: what each writes towards the answer and to the name movers."""

from __future__ import annotations

from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.edges import head_writes, input_matrices
from interp.engine.forward import Recorder, Walk
from interp.engine.parts import Norm
from interp.engine.verify import verified
from interp.tasks import Task

__all__ = ["IndirectObjects"]

_NAME_MOVERS = 5
_SITES = {"resid_pre", "q", "k_rotated", "v", "pattern", "z"}


class IndirectObjects:
    """The clean prompts of an indirect-object task, run once.

    Args:
        model: any bridge.
        task: ``ioi``, with the named positions ``io``, ``s1``, ``s2`` and ``end``.
    """

    def __init__(self, model: TransformerBridge, task: Task) -> None:
        self.parts, self.task = verified(model), task
        self.n_heads, self.rows = self.parts.graph.n_heads, torch.arange(len(task), device=self.parts.device)
        self.places = {name: at.to(self.parts.device) for name, at in task.positions.items()}
        tokens = task.clean.to(self.parts.device)
        self.walk, recorder = Walk(self.parts, tokens.shape[1]), Recorder(_SITES)
        with torch.no_grad():
            self.final = self.walk(self.walk.embed(tokens), recorder)
        self.kept = recorder.kept

    @cached_property
    def writes(self) -> Float[Tensor, "layer head batch d_model"]:
        """What each head adds to the residual stream at the last position."""
        end = self.places["end"]
        with torch.no_grad():
            return torch.stack(
                [
                    head_writes(block, self.kept["z", layer][self.rows, end][:, None])[:, :, 0]
                    for layer, block in enumerate(self.parts.blocks)
                ]
            )

    @cached_property
    def direct_effects(self) -> Float[Tensor, "layer head"]:
        """Mean over the prompts of each head's share of the logit difference, the final norm's scale held."""
        return self._on_logits(self.writes)

    @torch.no_grad()
    def direct_effects_from(self, *places: str) -> Float[Tensor, "layer head"]:
        """The part of the direct effects that comes from attending to some of the named positions."""
        found, end = [], self.places["end"]
        for layer, block in enumerate(self.parts.blocks):
            pattern, v = self.kept["pattern", layer], self.kept["v", layer]
            v = v.repeat_interleave(self.n_heads // v.shape[2], 2)
            z = sum(
                pattern[self.rows, :, end, self.places[name], None] * v[self.rows, self.places[name]] for name in places
            )
            whole = self.kept["z", layer][self.rows, end]
            found.append(head_writes(block, torch.as_tensor(z)[:, None], whole[:, None])[:, :, 0])
        return self._on_logits(torch.stack(found))

    @torch.no_grad()
    def _on_logits(self, writes: Float[Tensor, "layer head batch d_model"]) -> Float[Tensor, "layer head"]:
        weight = self.parts.unembed.weight
        right, wrong = (ids[:, 0].to(self.parts.device) for ids in (self.task.right, self.task.wrong))
        scaled = _through(self.parts.ln_final, writes, self.final[self.rows, self.places["end"]])
        return torch.einsum("lhbd,bd->lh", scaled, weight[right] - weight[wrong]) / len(self.task)

    @property
    def name_movers(self) -> list[tuple[int, int]]:
        """The five heads with the largest direct effects from attending to the indirect object."""
        effects = self.direct_effects_from("io")
        order = effects.flatten().argsort(descending=True, stable=True)[:_NAME_MOVERS].tolist()
        return [(at // self.n_heads, at % self.n_heads) for at in order]

    @cached_property
    def effects_on_queries(self) -> Float[Tensor, "layer head"]:
        """Mean over the prompts, and over the name movers, of what each earlier head's write adds to the mover's
        attention score of the indirect object less that of the subject (mean of both places)."""
        total = torch.zeros_like(self.direct_effects)
        for layer, head in self.name_movers:
            total[:layer] += self._on_query(layer, head) / _NAME_MOVERS
        return total

    @torch.no_grad()
    def _on_query(self, layer: int, head: int) -> Float[Tensor, "earlier head"]:
        graph, block = self.parts.graph, self.parts.blocks[layer]
        end, group = self.places["end"], head * graph.n_kv_heads // graph.n_heads
        read = _through(block.ln1, self.writes[:layer], self.kept["resid_pre", layer][self.rows, end])
        query = torch.einsum("lhbd,kd->lhbk", read, input_matrices(block.q, graph.n_heads)[head])
        if block.q_norm is not None:
            query = block.q_norm.centre(query) * block.q_norm.scale_of_head(self.kept["q", layer][self.rows, end], head)
            weight = block.q_norm.weight_of_head(head)
            query = query if weight is None else query * weight.to(query.dtype)
        turned = torch.stack(
            [
                self.walk._rotate(block, query[:, :, row, None].flatten(0, 1)[:, :, None], int(at)).flatten(1)
                for row, at in enumerate(end.tolist())
            ],
            1,
        )
        keys = self.kept["k_rotated", layer][:, :, group]
        io, s1, s2 = (keys[self.rows, self.places[name]] for name in ("io", "s1", "s2"))
        scores = torch.einsum("nbk,bk->n", turned, io - (s1 + s2) / 2) * block.scale / len(self.task)
        return scores.unflatten(0, (layer, self.n_heads))


def _through(norm: Norm, write: Tensor, whole: Tensor) -> Tensor:
    """A share of a norm's input behind the norm, whose scale is that of the whole input."""
    out = norm.centre(write) * norm.inverse_scale(whole)
    return out if norm.weight is None else out * norm.weight.to(out.dtype)
