"""Judging dictionaries of several places: what they explain at each, and a model whose MLPs are all replaced."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from jaxtyping import Bool, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.forward import Recorder, Visitor, Walk
from interp.engine.identity import identity
from interp.engine.parts import Parts
from interp.engine.progress import track
from interp.engine.verify import verified
from interp.errors import UsageError
from interp.features.architectures.cross_layer import CrossLayerTranscoder
from interp.features.architectures.dictionary import Batch, Dictionary
from interp.features.judging.judge import compared, halves, recovered, undefined
from interp.features.judging.splice import counted
from interp.features.overlap import overlap
from interp.features.place import MLP_IN, Place, listed
from interp.features.training.metrics import Moments
from interp.features.training.run import as_batch
from interp.results import scores

__all__ = ["Replacing", "explained", "judge_replacement", "shuffled"]


def shuffled(dictionary: Any, seed: int = 0) -> Any:
    """A control: the same codes, but each latent writes what another one should.

    Args:
        dictionary: It is copied.
        seed: Of the permutation of decoder rows (within each layer of a cross-layer transcoder).
    """
    control, generator = copy.deepcopy(dictionary), torch.Generator().manual_seed(seed)
    layers = control.layers if isinstance(control, CrossLayerTranscoder) else [control]
    with torch.no_grad():
        for layer in layers:
            rows: Any = layer.W_dec
            rows.copy_(rows[torch.randperm(len(rows), generator=generator).to(rows.device)])
    return control


@torch.no_grad()
def explained(dictionary: Dictionary, batches: Iterable[Any], fit: int = 1, *, seed: int = 0) -> xr.DataArray:
    """The explained variance (R²) at each place that a dictionary writes, with baselines beside it.

    Args:
        dictionary: Any, of one place or several.
        batches: Activations, as `interp.features.train` takes them.
        fit: So many batches, the first ones, give the baselines what they need to know; the others are judged.
        seed: Of the shuffled control.

    Returns:
        "method node": ``dictionary``; ``shuffled``, the same codes with decoder rows permuted, times the number that
        fits best; ``PCA``, so many principal components of each place's own activations as latents are active.

    Raises:
        UsageError: No batch is left to be judged, or batches that the dictionary can't read.
    """
    iterator = (as_batch(item, dictionary) for item in batches)
    fitted = [batch for _, batch in zip(range(fit), iterator, strict=False)]
    if len(fitted) < max(1, fit):
        raise UsageError(f"there are {len(fitted)} batches, {fit} are for fitting and more to judge; give more")
    x, y = (torch.cat(sides) for sides in zip(*[(one.x, one.target) for one in fitted], strict=True))
    control, mean = shuffled(dictionary, seed), y.mean(0)
    l0 = max(1, round(float((_codes(dictionary, x) > 0).sum(1).double().mean())))
    found = _written(control, x) - control.b_dec
    widths = dictionary.widths_out
    gains = torch.cat(
        [
            (((target - target.mean(0)) * guess).sum() / guess.square().sum().clamp_min(1e-30)).expand(len(target.T))
            for target, guess in zip(y.split(widths, 1), found.split(widths, 1), strict=True)
        ]
    )
    axes = [torch.linalg.eigh(piece.T.cov()).eigenvectors[:, -l0:] for piece in y.split(widths, 1)]

    def methods(batch: Batch) -> dict[str, Tensor]:
        off = (batch.target - mean).split(widths, 1)
        return {
            "dictionary": _written(dictionary, batch.x),
            "shuffled": mean + gains * (_written(control, batch.x) - control.b_dec),
            "PCA": mean + torch.cat([piece @ axis @ axis.T for piece, axis in zip(off, axes, strict=True)], 1),
        }

    sums: dict[str, list[Moments]] = {}
    n = 0
    for batch in iterator:
        n += len(batch.x)
        for name, guess in methods(batch).items():
            places = sums.setdefault(name, [Moments() for _ in widths])
            for at, (target, error) in enumerate(
                zip(batch.target.split(widths, 1), (batch.target - guess).split(widths, 1), strict=True)
            ):
                places[at].add(target, error)
    if not n:
        raise UsageError(f"all {fit} batches are for fitting; give more to judge")
    writes = dictionary.writes
    nodes = [f"place {at}" for at in range(len(widths))] if writes is None else list(map(str, listed(writes)))
    table = [[place.r2() for place in places] for places in sums.values()]
    return scores(
        torch.tensor(table, dtype=torch.float64),
        ("method", "node"),
        {"method": list(sums), "node": nodes},
        name="r2",
        allow_nan=True,
        units="share of the variance",
        tokens=n,
        components=l0,
        seed=seed,
    )


def _codes(dictionary: Dictionary, x: Tensor) -> Tensor:
    return dictionary.encode(x / dictionary.units(x))


def _written(dictionary: Dictionary, x: Tensor) -> Tensor:
    """The reconstruction of scaled activations, scaled."""
    return dictionary(x / dictionary.units(x)) * dictionary.units(x, out=True)


class Replacing(Visitor):
    """Runs a walk with the outputs of a cross-layer transcoder in place of what it writes, reading the walk itself.

    Args:
        parts: The model's parts.
        clt: The transcoder.
        where: Positions at which outputs are replaced.

    Raises:
        UsageError: The transcoder does not fit the model.

    Reference: Ameisen et al. 2025, "Circuit Tracing", "From Cross-Layer Transcoder to Replacement Model".
    """

    def __init__(self, parts: Parts, clt: CrossLayerTranscoder, where: Bool[Tensor, "batch pos"]) -> None:
        reads, writes = _sites(clt, parts)
        self.parts, self.clt, self.where = parts, clt, where[..., None]
        self.reads = {(_shown(place), place.layer): at for at, place in enumerate(reads)}
        self.writes = {(place.site, place.layer): at for at, place in enumerate(writes)}
        self.mlp_in = reads[0].site == MLP_IN
        like = clt.b_dec.detach()
        self.units_in = (clt.units(like.new_empty(clt.d_in)) * like.new_ones(clt.d_in)).split(clt.widths_in)
        self.units_out = (clt.units(like, out=True) * torch.ones_like(like)).split(clt.widths_out)
        self.sums: list[Tensor] = list(like.split(clt.widths_out))

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        if (at := self.reads.get((site, layer))) is not None:
            read = self.parts.blocks[layer].ln2(x) if self.mlp_in else x
            part = self.clt.of(at)
            written = part.encode(read.to(part.W_dec) * self.units_in[at]) @ part.W_dec
            for target, piece in enumerate(written.split(self.clt.widths_out[at:], -1), at):
                self.sums[target] = self.sums[target] + piece
        if (at := self.writes.get((site, layer))) is not None:
            return torch.where(self.where, (self.sums[at] / self.units_out[at]).to(x), x)
        return x


class _Ablating(Visitor):
    """Puts a constant in place of some outputs."""

    def __init__(self, constants: dict[tuple[str, int], Tensor], where: Tensor) -> None:
        self.constants, self.where = constants, where[..., None]

    def visit(self, layer: int, site: str, first: int, x: Tensor) -> Tensor:
        constant = self.constants.get((site, layer))
        return x if constant is None else torch.where(self.where, constant.to(x), x)


@torch.no_grad()
def judge_replacement(
    model: TransformerBridge,
    clt: CrossLayerTranscoder,
    source: str | Path | Sequence[str] | Int[Tensor, "text pos"] = "prose",
    n: int | None = None,
    length: int | None = None,
    *,
    seed: int = 0,
    fit_share: float = 0.5,
    skip: int = 0,
    batch: int = 4,
) -> xr.DataArray:
    """What the model predicts with all the outputs that a cross-layer transcoder writes replaced at once.

    Later layers of the transcoder read what the model computes on the replacements of earlier ones.

    Args:
        model: Any bridge. It is only read.
        clt: The transcoder.
        source: The texts: see `interp.tasks.corpus`; also token ids.
        n: How many texts; 32, or all rows of token ids.
        length: Tokens in each; 256, or all of the token ids.
        seed: Of the texts and of the shuffled control.
        fit_share: Share of the texts that gives the means of the mean ablation.
        skip: So many positions at the start of each text are left as they are and do not count.
        batch: Texts that are run together.

    Returns:
        "method metric": methods ``dictionary``, ``shuffled`` (see `shuffled`), ``mean`` and ``zero`` (all outputs
        ablated); metrics ``ce`` and ``kl`` (nats a token), ``ce_recovered`` and ``ce_recovered_mean`` (shares of what
        zero and mean ablation cost). ``ce_clean`` stands in the attributes, and ``undefined``, which shares are NaN
        and why.

    Raises:
        UsageError: The transcoder does not fit the model, or the texts do not suffice.
    """
    parts = verified(model)
    _, writes = _sites(clt, parts)
    tokens, begin = halves(source, model, n, length, seed, fit_share)
    counts, walk = counted(tokens, model, skip), Walk(parts, tokens.shape[1])
    seen = overlap(clt, tokens[begin:])
    sites = [(place.site, place.layer) for place in writes]
    total = dict.fromkeys(sites, torch.zeros((), dtype=torch.float64))
    for first in range(0, begin, batch):
        some = slice(first, min(first + batch, begin))
        recorder = Recorder({site for site, _ in sites})
        walk(walk.embed(tokens[some]), recorder, last_layer=sites[-1][1])
        total = {at: total[at].to(parts.device) + recorder.kept[at][counts[some]].double().sum(0) for at in sites}
    means = {at: value / int(counts[:begin].sum()) for at, value in total.items()}
    control = shuffled(clt, seed)
    losses: dict[str, Tensor] = {}
    with track(len(tokens) - begin, "judging") as advance:
        for first in range(begin, len(tokens), batch):
            some = slice(first, min(first + batch, len(tokens)))
            at = counts[some]
            visitors = {
                "clean": Visitor(),
                "dictionary": Replacing(parts, clt, at),
                "shuffled": Replacing(parts, control, at),
                "mean": _Ablating(means, at),
                "zero": _Ablating({site: torch.zeros_like(mean) for site, mean in means.items()}, at),
            }
            finals = {name: walk(walk.embed(tokens[some]), visitor) for name, visitor in visitors.items()}
            for name, pair in compared(parts, finals, tokens[some, 1:]).items():
                losses[name] = losses.get(name, 0.0) + torch.where(at[:, :-1].cpu(), pair, 0.0).sum((1, 2))
            advance(some.stop - some.start)
    positions = int(counts[begin:, :-1].sum())
    mean_loss = {name: (value / positions).tolist() for name, value in losses.items()}
    clean = mean_loss.pop("clean")[0]
    table = []
    for ce, kl in mean_loss.values():
        table.append([ce, kl, *(recovered(ce, clean, mean_loss[ablated][0]) for ablated in ("zero", "mean"))])
    return scores(
        torch.tensor(table, dtype=torch.float64),
        ("method", "metric"),
        {"method": list(mean_loss), "metric": ["ce", "kl", "ce_recovered", "ce_recovered_mean"]},
        name="value",
        allow_nan=True,
        model=str(model.cfg.model_name),
        fingerprint=identity(model),
        ce_clean=clean,
        undefined=undefined(clean, mean_loss["zero"][0], mean_loss["mean"][0]),
        overlap=seen,
        tokens=positions,
        layers=[place.layer for place in writes],
        skip=skip,
        seed=seed,
    )


def _sites(clt: CrossLayerTranscoder, parts: Parts) -> tuple[tuple[Place, ...], tuple[Place, ...]]:
    """Where a cross-layer transcoder reads and writes, checked against a model.

    Raises:
        UsageError: It has no places, or they do not fit the model or each other.
    """
    if clt.reads is None or clt.writes is None:
        raise UsageError("the cross-layer transcoder must say at which places it reads and writes")
    reads, writes = listed(clt.reads), listed(clt.writes)
    for places, widths, what in ((reads, clt.widths_in, "reads"), (writes, clt.widths_out, "writes")):
        for place, width in zip(places, widths, strict=True):
            if place.width(parts.graph) != width:
                raise UsageError(
                    f"it {what} {width} numbers at {place}, where this model has {place.width(parts.graph)}"
                )
    sites = {place.site for place in reads}, {place.site for place in writes}
    layers = [place.layer for place in reads], [place.layer for place in writes]
    fits = sites[0] <= {MLP_IN, "resid_mid"} and len(sites[0]) == 1 and sites[1] == {"mlp_out"}
    if not fits or layers[0] != layers[1] or layers[0] != sorted(set(layers[0])):
        raise UsageError(
            f"it must read mlp_in or resid_mid and write mlp_out of the same layers in increasing order; it reads "
            f"{', '.join(map(str, reads))} and writes {', '.join(map(str, writes))}"
        )
    return reads, writes


def _shown(place: Place) -> str:
    """The site at which a walk shows what is read; the MLP's input is the norm of what is shown."""
    return "mlp_port" if place.site == MLP_IN else place.site
