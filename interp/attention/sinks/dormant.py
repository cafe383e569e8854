"""Active-dormant heads: at rest on a sink in one kind of text, at work in another; and what they are worth in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from interp.attention.retrieval.masking import ZeroHeads
from interp.attention.sinks.losses import interval, token_losses
from interp.attention.sinks.survey import DOMAINS, Domains, domain_texts, named_domains, sink_heads
from interp.engine.forward import Recorder, Walk
from interp.engine.identity import identity
from interp.engine.parts import Parts
from interp.engine.progress import track
from interp.engine.verify import verified
from interp.errors import UsageError
from interp.results import scores
from interp.results.findings import Head, SinkHeads

__all__ = ["active_dormant", "dormant_ablation", "head_costs"]


def active_dormant(found: SinkHeads | Any, least: float = 0.0, **options: Any) -> pd.DataFrame:
    """Heads by how much more often they have a sink on one kind of text than on another.

    Args:
        found: sink heads with several domains; or a model, of which they are found first.
        least: leave out heads whose sink rates differ by less.
        **options: for a model, what `interp.attention.sink_heads` takes.

    Returns:
        A row a head, the largest difference first: ``layer``, ``head``, the sink rate on each domain (its name is the
        column), ``dormant_on`` and ``active_on`` (the domains with the highest and the lowest rate), ``difference``
        of these rates, ``attention`` (by how much the mean attention to the first position differs between these
        two), and ``z``, that difference in its standard errors over the texts.

    Raises:
        UsageError: fewer than two domains.

    Reference: Guo et al. 2024, "Active-Dormant Attention Heads", arXiv:2410.13835, section 4 (there, one head of
    Llama 2 7B: a sink on Wikipedia, none on GitHub).
    """
    finding = found if isinstance(found, SinkHeads) else sink_heads(found, **options)
    if "domains" not in finding.evidence or finding.evidence["domains"].sizes["domain"] < 2:
        raise UsageError("active-dormant heads show between kinds of text: find the sink heads on two domains at least")
    rates, attention, errors = (
        finding.evidence[name].values for name in ("domains", "domain_attention", "domain_error")
    )
    names = [str(name) for name in finding.evidence["domains"]["domain"].values]
    rows = []
    for layer, head in np.ndindex(*rates.shape[1:]):
        rate, mean, error = (x[:, layer, head] for x in (rates, attention, errors))
        # Among equal rates (often 0 or 1) the mean attention decides.
        order = np.lexsort((mean, rate))
        active, dormant = int(order[0]), int(order[-1])
        gap = float(mean[dormant] - mean[active])
        noise = float(np.hypot(error[dormant], error[active]))
        rows.append(
            {
                "layer": layer,
                "head": head,
                **{name: float(value) for name, value in zip(names, rate, strict=True)},
                "dormant_on": names[dormant],
                "active_on": names[active],
                "difference": float(rate[dormant] - rate[active]),
                "attention": gap,
                "z": gap / noise if noise else float("nan"),
            }
        )
    table = pd.DataFrame(rows)
    table = table[table["difference"] >= least]
    return table.sort_values(["difference", "attention"], ascending=False, kind="stable").reset_index(drop=True)


def head_costs(
    model: Any,
    sets: Mapping[str, Sequence[Head]] | Sequence[Head],
    domains: Domains = DOMAINS,
    n: int | None = None,
    length: int | None = None,
    seed: int = 1,
    *,
    skip: int = 8,
    prefix: bool = True,
) -> xr.DataArray:
    """By how much the next-token loss rises on each kind of text without some heads: their output z is zero.

    Args:
        model: any bridge.
        sets: named sets of heads, each left out together; or heads, each left out alone.
        domains: kinds of text, see `interp.attention.sink_heads`.
        n: texts of each kind; 8, or all rows of token ids.
        length: tokens of each; 128, or all of the token ids.
        seed: of the texts; another one than the heads were chosen with.
        skip: so many predictions at the start of each text don't count.
        prefix: let what the model wants before a text stand first.

    Returns:
        Rise of the loss in nats a token, "node domain example".

    Raises:
        UsageError: no heads, a head that there is not, an unknown domain.

    Reference: the metric of Guo et al. 2024, arXiv:2410.13835, section 4.1 (zeroing a head out).
    """
    named = dict(sets) if isinstance(sets, Mapping) else {f"{layer}.{head}": [(layer, head)] for layer, head in sets}
    parts = verified(model)
    for name, heads in named.items():
        for layer, head in heads:
            if not (0 <= layer < parts.graph.n_layers and 0 <= head < parts.graph.n_heads):
                raise UsageError(f"there is no head {layer}.{head} (of {name!r}) in this model")
    if not named or not all(named.values()):
        raise UsageError("there are no heads to leave out")
    kinds, length = named_domains(domains, length, 128)
    if not 0 <= skip < length - 1:
        raise UsageError(f"skip must be between 0 and {length - 2} for texts of {length} tokens, got {skip}")
    texts = domain_texts(model, kinds, n, 8, length, seed, prefix)
    numbers = {len(rows) for rows in texts.values()}
    if len(numbers) > 1:
        raise UsageError(f"each kind of text has as many texts, and token ids of {sorted(numbers)} are given; say n=")
    n = min(numbers)
    values = np.empty((len(named), len(texts), n))
    with track(len(texts) * n, "leaving out heads") as advance:
        for column, tokens in enumerate(texts.values()):
            for row, text in enumerate(tokens.split(1)):
                values[:, column, row] = _rises(parts, text.to(parts.device), list(named.values()), skip)
                advance(1)
    return scores(
        values,
        ("node", "domain", "example"),
        {"node": list(named), "domain": list(texts)},
        name="rise of the loss",
        units="nats a token",
        model=str(model.cfg.model_name),
        fingerprint=identity(model),
        length=length,
        skip=skip,
        seed=seed,
        prefix=prefix,
    )


def dormant_ablation(
    model: Any,
    found: SinkHeads,
    k: int = 10,
    n: int | None = None,
    length: int | None = None,
    seed: int = 1,
    *,
    domains: Domains | None = None,
) -> pd.DataFrame:
    """What the `k` most active-dormant heads are worth where they are dormant, and where they are active.

    Args:
        model: the model that the finding is about.
        found: sink heads with several domains.
        k: how many heads.
        n: texts of each kind; 8, or all rows of token ids.
        length: tokens of each; 128, or all of the token ids.
        seed: of the texts.
        domains: texts of the same kinds by their names, else the finding's, which must be names of corpora.

    Returns:
        A row for each head and domain: ``layer``, ``head``, ``domain``, ``sink_rate`` there, ``state`` (dormant on the
        domain with the highest rate, active on that with the lowest, else between), ``increase`` of the loss in nats a
        token without the head, with its 95 % interval over texts, ``low`` and ``high``.

    Raises:
        UsageError: another model's finding, fewer than two domains, or no texts of one of them.
    """
    found.check(model)
    table = active_dormant(found).head(k)
    names = [str(name) for name in found.evidence["domains"]["domain"].values]
    heads = list(zip(table["layer"].tolist(), table["head"].tolist(), strict=True))
    prefix, domains = bool(found.settings.get("prefix", True)), names if domains is None else domains
    if isinstance(domains, Tensor) or (left := set(names) - set(domains)):
        unnamed = names if isinstance(domains, Tensor) else sorted(left)
        raise UsageError(f"give texts of the finding's kinds by their names; {', '.join(unnamed)} is left out")
    costs = head_costs(model, heads, domains, n, length, seed, prefix=prefix)
    rows = []
    for (layer, head), head_row in zip(heads, table.to_dict("records"), strict=True):
        for name in names:
            state = {head_row["dormant_on"]: "dormant", head_row["active_on"]: "active"}.get(name, "between")
            rise = interval(costs.sel(node=f"{layer}.{head}", domain=name).values)
            rows.append((layer, head, name, head_row[name], state, *rise))
    columns = ["layer", "head", "domain", "sink_rate", "state", "increase", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


@torch.no_grad()
def _rises(parts: Parts, tokens: Tensor, sets: list[Sequence[Head]], skip: int) -> list[float]:
    """Of one text; a walk without some heads begins at the first of their layers."""
    walk, recorder = Walk(parts, tokens.shape[1]), Recorder({"resid_pre"})
    targets = tokens[:, skip + 1 :]
    clean = walk(walk.embed(tokens), recorder, read_from=skip)
    base = float(token_losses(parts, clean[:, :-1], targets).mean())
    rises = []
    for heads in sets:
        first = min(layer for layer, _ in heads)
        resid = walk(recorder.kept["resid_pre", first], ZeroHeads(heads), first_layer=first, read_from=skip)
        rises.append(float(token_losses(parts, resid[:, :-1], targets).mean()) - base)
    return rises
