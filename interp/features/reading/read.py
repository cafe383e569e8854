"""Reading features: where each is active, what it writes, and with which others it comes, from one pass over a store.

What is kept of the pass does not grow with the number of tokens: the best contexts, a random sample, a histogram whose
bins double, and counts of pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.identity import identity
from interp.engine.parts import Parts
from interp.engine.progress import track
from interp.engine.verify import verified
from interp.errors import UsageError
from interp.features.activations.base import Activations
from interp.features.activations.rows import LAYOUT
from interp.features.judging.splice import encode, placed, places, scale_out
from interp.features.place import Place
from interp.features.reading.passes import BINS, Pass, Piece
from interp.features.reading.readings import FeatureReadings

__all__ = ["logit_effects", "read_features"]

_CODES = 1 << 24
"""Codes held at once."""
_SPARE = 4
"""The random sample is so many times as large as what is shown of it, so that its quantiles are good ones."""


@torch.no_grad()
def read_features(
    model: TransformerBridge,
    dictionary: Any,
    store: Activations,
    features: Sequence[int] | None = None,
    k: int = 10,
    quantiles: int = 5,
    window: int = 12,
    seed: int = 0,
    *,
    samples: int = 3,
    partners: int = 10,
    logits: int = 10,
    max_memory: int = 2 << 30,
) -> FeatureReadings:
    """Reads features: top contexts, samples of each quantile, histogram, density, logit effects, companions.

    Args:
        model: The bridge whose activations the store has.
        dictionary: Anything with `encode`, `W_dec`, and the places that it `reads` and `writes`.
        store: Activations of the place that the dictionary reads.
        features: Which to read; all by default.
        k: Top contexts of a feature, one from each row of the store at most.
        quantiles: Bands of equal size into which a feature's activations above zero are cut, by rank.
        window: Tokens shown to each side.
        seed: Of the random samples; they do not depend on how the store is cut up.
        samples: Contexts from each band.
        partners: How many companions, the features of highest phi: 4 bytes for each feature read and each of all
            while reading. 0 for none.
        logits: How many of the most promoted tokens and of the most suppressed ones.
        max_memory: Bytes for all that is kept during the pass.

    Returns:
        Readings; for pages to look at, see `interp.plots.dashboards`.

    Raises:
        UsageError: A store of another model or place, features that the dictionary does not have, sizes that make no
            sense, or more features than fit into memory.

    Reference: Bricken et al. 2023, "Towards Monosemanticity" (dashboards: top and interval samples, logit weights);
    phi coefficient of co-occurrence as in Li et al. 2024, arXiv:2410.19750, section 4.

    Example:
        >>> readings = read_features(model, dictionary, store, features=range(100))     # doctest: +SKIP
        >>> readings.logits(3).promoted                                                 # doctest: +SKIP
    """
    parts = verified(model)
    reads, writes = places(dictionary, parts.graph)
    store.check(reads, reads.width(parts.graph))
    if store.manifest["fingerprint"] != identity(model):
        raise UsageError(f"the activations are of another model, {store.manifest['model']}; harvest them with this one")
    dictionary = placed(dictionary, parts.device)
    d_sae = len(dictionary.W_dec)
    chosen = _chosen(features, d_sae)
    sizes = {"k": k, "quantiles": quantiles, "samples": samples}
    if min(sizes.values()) < 1 or min(window, partners, logits) < 0:
        raise UsageError(f"{', '.join(sizes)} must be 1 at least and window, partners, logits 0, got {sizes}")
    spare = _SPARE * quantiles * samples
    _check_memory(len(chosen), d_sae if partners else 0, (k + spare) * (40 + 8 * (2 * window + 1)), max_memory)
    found = Pass(chosen, d_sae, k, spare, window, seed, bool(partners))
    with track(store.n_tokens, "reading features") as advance:
        for piece in _pieces(store, reads, max(1, _CODES // d_sae)):
            found.add(encode(dictionary, piece.x).float().cpu().numpy(), piece)
            advance(len(piece.x))
    ids, values = logit_effects(parts, dictionary, writes, chosen, logits)
    arrays = found.arrays(quantiles, samples, partners, store.n_tokens)
    arrays |= {"effects.ids": ids, "effects.values": values}
    settings = {**sizes, "window": window, "seed": seed}
    about = {
        "model": str(model.cfg.model_name),
        "fingerprint": store.manifest["fingerprint"],
        "reads": str(reads),
        "writes": str(writes),
        "corpus": store.manifest["corpus"],
        "n_tokens": store.n_tokens,
        "d_sae": d_sae,
    }
    used = [arrays["effects.ids"], arrays["top.tokens"], arrays["sample.tokens"]]
    return FeatureReadings(chosen, about | settings, _strings(model, used), arrays)


def logit_effects(
    parts: Parts, dictionary: Any, writes: Place, features: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens whose logits the decoder rows of features raise and lower most.

    The effect of a row d is W_U (w * d'), w being the final norm's weight and d' the row, centred if the norm centres;
    the norm's division, which depends on the token, and a cap on logits are left out.

    Args:
        parts: The model's parts.
        dictionary: Anything with `W_dec`.
        writes: Where it writes. What it writes before a projection to the stream (``z``, ``post``) is projected first.
        features: Their numbers.
        n: How many tokens at each end.

    Returns:
        Token ids and effects, "feature 2n": the n highest, downwards, and the n lowest, the lowest last. Of width 0 at
        places that do not write to the stream (``q``, ``k``, ``v``).
    """
    n = min(n, parts.unembed.weight.shape[0] // 2) if writes.site not in ("q", "k", "v") else 0
    ids = np.empty((len(features), 2 * n), np.int64)
    values = np.empty((len(features), 2 * n), np.float32)
    unembed = parts.unembed.weight.float()
    # where each activation is resized, of one of size 1
    size = 1.0 if getattr(dictionary, "resizes", False) else scale_out(dictionary)
    for first in range(0, len(features) if n else 0, 256):
        some = slice(first, first + 256)
        rows = dictionary.W_dec[torch.from_numpy(features[some]).to(dictionary.W_dec.device)] / size
        rows = parts.ln_final.centre(_in_stream(parts, writes, rows.to(parts.device)))
        weight = parts.ln_final.weight
        effects = (rows if weight is None else rows * weight.float()) @ unembed.t()
        high, low = effects.topk(n), effects.topk(n, largest=False)
        ids[some] = torch.cat([high.indices, low.indices.flip(1)], 1).cpu().numpy()
        values[some] = torch.cat([high.values, low.values.flip(1)], 1).cpu().numpy()
    return ids, values


def _in_stream(parts: Parts, writes: Place, rows: Tensor) -> Float[Tensor, "feature d_model"]:
    block = parts.blocks[writes.layer]
    project = {"z": block.o, "post": block.down}.get(writes.site)
    if project is None:
        return rows.float()
    rows = rows.to(parts.dtype)
    return (project(rows) - project(torch.zeros_like(rows))).float()


def _pieces(store: Activations, place: Place, at_once: int) -> Iterator[Piece]:
    """The store in its own order, some whole rows at a time."""
    before = 0
    for number, size in enumerate(store.sizes):
        shard = store.load(number, [str(place), *LAYOUT])
        layout = {name: shard[name].long().numpy() for name in LAYOUT}
        row, edges = layout["row"], layout["edges"]
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        first = 0
        while first < size:
            beyond = starts[np.searchsorted(starts, first + at_once, "right") - 1] if first + at_once < size else size
            if beyond <= first:  # a row longer than that
                later = starts[starts > first]
                beyond = int(later[0]) if len(later) else size
            here = slice(first, int(beyond))
            begin, stop = edges[row[here]], edges[row[here] + 1]
            at = begin + layout["position"][here]
            yield Piece(shard[str(place)][here], before + first, layout["tokens"], layout["documents"], begin, stop, at)
            first = int(beyond)
        before += size


def _chosen(features: Sequence[int] | None, d_sae: int) -> np.ndarray:
    chosen = np.arange(d_sae) if features is None else np.unique(np.asarray(list(features), np.int64))
    if not len(chosen) or chosen[0] < 0 or chosen[-1] >= d_sae:
        what = f"got {chosen[0]} to {chosen[-1]}" if len(chosen) else "got none"
        raise UsageError(f"features are numbered 0 to {d_sae - 1}; {what}")
    return chosen


def _check_memory(n: int, pairs: int, contexts: int, max_memory: int) -> None:
    each = 4 * pairs + contexts + 8 * (BINS + 4)
    if n * each > max_memory:
        raise UsageError(
            f"reading {n:,} features keeps {n * each:,} bytes and max_memory is {max_memory:,}: choose "
            f"{max_memory // each:,} features at most, raise max_memory, or leave companions out with partners=0"
        )


def _strings(model: Any, used: Sequence[np.ndarray]) -> dict[int, str]:
    """The texts of token ids; of a model without a tokenizer, their numbers."""
    tokenizer = getattr(model, "tokenizer", None)
    ids = np.unique(np.concatenate([array.ravel() for array in used])).tolist()
    return {i: (tokenizer.decode([i]) if tokenizer is not None else "") or f"[{i}]" for i in ids if i >= 0}
