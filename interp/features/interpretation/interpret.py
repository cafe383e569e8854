"""Interpreting features: explain each from some contexts, score the explanation on others, with two controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from transformer_lens.model_bridge import TransformerBridge

from interp.engine.identity import identity
from interp.engine.parts import Parts
from interp.engine.progress import track
from interp.engine.verify import verified
from interp.errors import UsageError, unknown_name
from interp.features.activations.base import Activations
from interp.features.interpretation.codes import Codes, Text, gather
from interp.features.interpretation.controls import matched, others_of, random_dictionary
from interp.features.interpretation.embedding import Embedder
from interp.features.interpretation.interpretations import Interpretation, Interpretations
from interp.features.interpretation.intervention import Intervention
from interp.features.interpretation.names import SCORERS
from interp.features.interpretation.ngrams import NGramExplainer
from interp.features.interpretation.predictors import Explainer, Judge, predictor
from interp.features.interpretation.sampling import Material, Plan, choose, halves, material, scorable
from interp.features.interpretation.scorers import Detection, Embedding, Fuzzing, Scorer, Simulation
from interp.features.judging.splice import places
from interp.features.place import Place
from interp.features.reading.read import logit_effects
from interp.tasks.tokens import Encoder

__all__ = ["DEFAULT", "SCORERS", "interpret"]

DEFAULT = SCORERS[:4]
"""Those that run the model no more than once over the texts."""

_PROMPTS, _PROMPT_LENGTH, _PROMOTED = 4, 24, 10


@torch.no_grad()
def interpret(
    model: TransformerBridge,
    dictionary: Any,
    store: Activations,
    features: Sequence[int] | None = None,
    explainer: Explainer | None = None,
    scorers: Sequence[str | Scorer] = DEFAULT,
    *,
    judge: Judge | None = None,
    embedder: Embedder | None = None,
    n: int = 20,
    contexts: int = 40,
    length: int = 32,
    quantiles: int = 5,
    least: int = 5,
    seed: int = 0,
    max_memory: int = 2 << 30,
) -> Interpretations:
    """Explains features and scores each explanation on contexts that the explainer has not seen.

    The rows of the store are halved at random: one half gives the explainer's contexts, the other half those that
    score. Beside every score stand the same score of another feature's explanation (drawn at random), and that of a
    random dictionary's feature of about the same density, explained and scored in the same way.

    Args:
        model: The bridge whose activations the store has.
        dictionary: Anything with `encode`, `decode`, `W_dec`, and the places that it `reads` and `writes`.
        store: Activations of the place that the dictionary reads.
        features: Which to explain, two at least; by default `n` of those with enough contexts, at random.
        explainer: Who explains; n-gram statistics, which need no model, by default.
        scorers: Names out of `SCORERS`, or objects with `chance` and `score`.
        judge: Who reads explanations that can't be checked by machine. The explainer itself, if it can answer.
        embedder: For the scorer ``embedding``; TF-IDF of character n-grams by default.
        n: How many features, if none are named.
        contexts: Active contexts to score on; as many at random and as many hard ones beside them.
        length: Tokens of a context.
        quantiles: Bands of contexts by their highest activation, of which equally many are drawn.
        least: Contexts of each sort without which a feature is not scored; it says so in its ``note``.
        seed: Of all draws. A feature's contexts do not depend on which others are explained.
        max_memory: Bytes for the activations above zero.

    Returns:
        Interpretations.

    Raises:
        UsageError: A store of another model or place, features that the dictionary does not have, fewer than two
            features, an unknown scorer, or explanations in words and no judge.
        InterpError: An explainer that fails.

    Reference: Paulo et al. 2024, arXiv:2410.13928; Bills et al. 2023, "Language models can explain neurons in language
    models" (shuffled and random controls are this library's).

    Example:
        >>> found = interpret(model, dictionary, store, n=50)     # doctest: +SKIP
        >>> found.means()                                         # doctest: +SKIP
    """
    parts = verified(model)
    reads, writes = places(dictionary, parts.graph)
    store.check(reads, reads.width(parts.graph))
    if store.manifest["fingerprint"] != identity(model):
        raise UsageError(f"the activations are of another model, {store.manifest['model']}; harvest them with this one")
    explainer = explainer or NGramExplainer()
    judge = judge or (explainer if isinstance(explainer, Judge) else None)
    _check(features, len(dictionary.W_dec), scorers, n, contexts, length, quantiles, least)
    plan = Plan(int(getattr(explainer, "contexts", contexts)), contexts, quantiles, least, seed)
    text = Text(store, length, lambda ids: _strings(model, ids))
    dictionaries = {
        "dictionary": dictionary,
        "random": random_dictionary(dictionary, store, reads, reads == writes, seed),
    }
    codes = gather(dictionaries, store, reads, text, max_memory)
    held_out = halves(codes["dictionary"], seed)
    chosen = choose(codes["dictionary"], features, n, held_out, plan)
    wanted = {"dictionary": chosen, "random": matched(codes, chosen, held_out, plan)}
    prompts = _prompts(text, held_out)
    sides = {}
    with track(2 * len(chosen), "explaining") as advance:
        for name, one in dictionaries.items():
            intervention = partial(Intervention, model, writes, one.W_dec.detach().__getitem__, prompts, judge)
            known = [_scorer(scorer, seed, embedder, intervention) for scorer in scorers]
            promoted = _promoted(parts, model, one, writes, wanted[name])
            sides[name] = _side(
                codes[name], wanted[name], held_out, plan, promoted, explainer, known, judge, lambda: advance(1)
            )
    chance = {score: value for scorer in known for score, value in scorer.chance.items()}
    about = {
        "model": str(model.cfg.model_name),
        "fingerprint": store.manifest["fingerprint"],
        "reads": str(reads),
        "writes": str(writes),
        "corpus": store.manifest["corpus"],
        "n_tokens": store.n_tokens,
        "d_sae": len(dictionary.W_dec),
        "random_active": dictionaries["random"].k,
        "explainer": type(explainer).__name__,
        "judge": None if judge is None else type(judge).__name__,
        "length": length,
        "plan": asdict(plan),
        "chance": chance,
    }
    return Interpretations(_rows(codes["dictionary"], sides, chosen, wanted["random"], held_out, plan), about)


@dataclass(frozen=True, eq=False)
class _Side:
    """What was found about the features of one dictionary."""

    explanations: dict[int, str]
    scores: dict[int, dict[str, float]]
    shuffled: dict[int, dict[str, float]]
    others: dict[int, int]


def _side(
    codes: Codes,
    features: Sequence[int],
    held_out: Bool[np.ndarray, " stretch"],
    plan: Plan,
    promoted: Mapping[int, tuple[str, ...]],
    explainer: Explainer,
    scorers: Sequence[Scorer],
    judge: Judge | None,
    advance: Callable[[], None],
) -> _Side:
    able = [feature for feature in features if not scorable(codes, feature, held_out, plan.least)]
    materials = {feature: material(codes, feature, held_out, plan, promoted[feature]) for feature in able}
    explanations: dict[int, str] = {}
    for feature in able:
        said = explainer.explain(materials[feature].shown)
        if not isinstance(said, str):
            raise UsageError(f"an explainer must give a text, {type(explainer).__name__} gave a {type(said).__name__}")
        explanations[feature] = said
    others = others_of(able, plan.seed)
    side = _Side(explanations, {}, {}, others)
    for feature in able:
        one = materials[feature]
        side.scores[feature] = _scored(explanations[feature], one, scorers, judge)
        if feature in others:
            side.shuffled[feature] = _scored(explanations[others[feature]], one, scorers, judge)
        advance()
    return side


def _scored(explanation: str, one: Material, scorers: Sequence[Scorer], judge: Judge | None) -> dict[str, float]:
    reader = predictor(explanation, judge)
    found: dict[str, float] = {}
    for scorer in scorers:
        found |= scorer.score(explanation, reader, one)
    return found


def _rows(
    codes: Codes,
    sides: Mapping[str, _Side],
    chosen: Sequence[int],
    matched: Sequence[int],
    held_out: Bool[np.ndarray, " stretch"],
    plan: Plan,
) -> tuple[Interpretation, ...]:
    mine, control = sides["dictionary"], sides["random"]
    pairs = dict(zip([f for f in chosen if f in mine.explanations], matched, strict=False))
    return tuple(
        Interpretation(
            feature=feature,
            explanation=mine.explanations.get(feature, ""),
            density=float(codes.active[feature] / len(codes.text.at)),
            scores=mine.scores.get(feature, {}),
            shuffled=mine.shuffled.get(feature, {}),
            other=mine.others.get(feature),
            random={
                "feature": pairs[feature],
                "explanation": control.explanations[pairs[feature]],
                "scores": control.scores[pairs[feature]],
            }
            if feature in pairs
            else {},
            note=scorable(codes, feature, held_out, plan.least),
        )
        for feature in chosen
    )


def _scorer(
    scorer: str | Scorer, seed: int, embedder: Embedder | None, intervention: Callable[[], Intervention]
) -> Scorer:
    if not isinstance(scorer, str):
        return scorer
    made: dict[str, Callable[[], Scorer]] = {
        "detection": Detection,
        "fuzzing": lambda: Fuzzing(seed),
        "embedding": lambda: Embedding(embedder),
        "simulation": Simulation,
        "intervention": intervention,
    }
    return made[scorer]()


def _prompts(text: Text, held_out: Bool[np.ndarray, " stretch"]) -> torch.Tensor:
    """The beginnings of some rows to score on, of one length."""
    rows = [row for row in np.unique(text.row[held_out]) if text.stop[row] - text.begin[row] >= 2]
    rows = sorted(rows, key=lambda row: -min(_PROMPT_LENGTH, int(text.stop[row] - text.begin[row])))[:_PROMPTS]
    if not rows:
        return torch.zeros(0, 2, dtype=torch.long)
    length = min(_PROMPT_LENGTH, *(int(text.stop[row] - text.begin[row]) for row in rows))
    return torch.tensor(np.stack([text.tokens[text.begin[row] : text.begin[row] + length] for row in rows])).long()


def _promoted(
    parts: Parts, model: Any, dictionary: Any, writes: Place, features: Sequence[int]
) -> dict[int, tuple[str, ...]]:
    ids, _ = logit_effects(parts, dictionary, writes, np.array(features, np.int64), _PROMOTED)
    half = ids[:, : ids.shape[1] // 2]
    strings = _strings(model, np.unique(half).tolist())
    return {feature: tuple(strings[i] for i in row.tolist()) for feature, row in zip(features, half, strict=True)}


def _strings(model: Any, ids: Sequence[int]) -> dict[int, str]:
    texts = Encoder(model).decode(tuple(ids))
    return {i: text or f"[{i}]" for i, text in zip(ids, texts, strict=True)}


def _check(
    features: Sequence[int] | None,
    d_sae: int,
    scorers: Sequence[str | Scorer],
    n: int,
    contexts: int,
    length: int,
    quantiles: int,
    least: int,
) -> None:
    for scorer in scorers:
        if isinstance(scorer, str) and scorer not in SCORERS:
            raise unknown_name("scorer", scorer, SCORERS)
    if not scorers:
        raise UsageError(f"name a scorer at least: {', '.join(SCORERS)}")
    sizes = {"n": n, "contexts": contexts, "length": length, "quantiles": quantiles, "least": least}
    if min(sizes.values()) < 1:
        raise UsageError(f"{', '.join(sizes)} must be 1 at least, got {sizes}")
    chosen = range(n) if features is None else list(features)
    if len(set(chosen)) < max(2, len(chosen)):
        raise UsageError(
            f"give two different features at least, each once: the explanation of one is the control of another; got "
            f"{list(chosen)}"
        )
    if features is not None and not all(0 <= feature < d_sae for feature in chosen):
        raise UsageError(f"features are numbered 0 to {d_sae - 1}; got {min(chosen)} to {max(chosen)}")
