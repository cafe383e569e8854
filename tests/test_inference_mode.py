"""Inside `torch.inference_mode()` all that takes gradients gives what it gives outside, or says what is in the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from families import VOCABULARY, boot, hugging_face_model, tiny
from prompts import random_task
from test_patching_features import dictionaries

import interp
from interp.attention.reasoning.tasks import train_kth_smallest
from interp.attention.sinks.backcopy_training import train_backcopy
from interp.circuits import score_edges
from interp.circuits.features import feature_edges
from interp.efficiency import deploy
from interp.efficiency.calibration import search_heads
from interp.efficiency.pruning import GradientScores, GreedyHeadPruning, MagnitudePruning
from interp.engine import verified
from interp.engine.gradient import backward
from interp.errors import InterpError
from interp.features import Dictionary, Place, TopK, TrainSettings, finetune, train, train_transcoders
from interp.features.architectures.transcoder import transcoder
from interp.features.judging.probing import logistic
from interp.gradients import gradients
from interp.patching import atp_star, attribution
from interp.patching.features import feature_effects
from interp.relevance import neuron_relevance
from interp.tasks import corpus
from interp.tracing import Transcoders, trace

pytestmark = pytest.mark.filterwarnings("ignore:the model does not perform")
IDS = torch.randint(5, VOCABULARY, (4, 10), generator=torch.Generator().manual_seed(0))
QUICK = TrainSettings(lr=3e-3, warmup=0.0, decay=1.0, centre=False)


@pytest.fixture(scope="module")
def model():
    return tiny("llama", dtype=torch.float64)


@pytest.fixture(scope="module")
def hf():
    return deploy(SMALL)


BATCHES = [torch.randn(8, 32, generator=torch.Generator().manual_seed(n)) for n in range(3)]


def _new():
    with torch.inference_mode(False):
        return TopK(32, 64, 4, reads=Place("resid_post", 1), seed=0)


def _trained(how):
    how(dictionary := _new())
    return torch.cat([weight.detach().flatten() for weight in dictionary.parameters()])


def _coders():
    """Transcoders, which are differentiated to know what a feature reads."""
    made = {}
    for layer in range(3):
        made[layer] = transcoder(Place("mlp_in", layer), Place("mlp_out", layer), 32, 24, architecture="jumprelu")
        generator = torch.Generator().manual_seed(layer)
        for weight in made[layer].parameters():
            weight.data = torch.randn(weight.shape, generator=generator).abs() * 0.1
    return Transcoders(made)


def _loaded(folder):
    """A dictionary that was saved, read and trained further."""
    _new().save(folder)
    dictionary = Dictionary.load(folder)
    train(dictionary, BATCHES, 2, settings=QUICK)
    return dictionary.W_dec.detach()


TASK = random_task(n=3)
SMALL, CODERS, DICTIONARIES = tiny("llama"), _coders(), dictionaries()
ENTRIES = {
    "attribution": lambda model, hf, tmp: attribution(model, TASK, "heads"),
    "attribution with kl": lambda model, hf, tmp: attribution(model, TASK, "heads", metric="kl"),
    "relp": lambda model, hf, tmp: attribution(model, TASK, ["resid_pre", "mlp_out"], True, rules="relp"),
    "rules of two runs": lambda model, hf, tmp: attribution(model, TASK, "heads", rules="secant"),
    "ig": lambda model, hf, tmp: attribution(model, TASK, "heads", steps=3),
    "ig along activations": lambda model, hf, tmp: attribution(model, TASK, "mlp_out", steps=2, along="activations"),
    "atp*": lambda model, hf, tmp: atp_star(model, TASK, "q"),
    "agreement": lambda model, hf, tmp: interp.patching.agreement(model, TASK, ["relp"], ["heads"]).estimates[
        "relp", "heads"
    ],
    **{
        method: lambda model, hf, tmp, method=method: score_edges(model, TASK, method)
        for method in ("eap", "eap-ig", "eap-ig-activations", "relp-ig")
    },
    "eap with kl": lambda model, hf, tmp: score_edges(model, TASK, "eap", ablation="mean", metric="kl"),
    "feature effects": lambda model, hf, tmp: feature_effects(model, TASK, DICTIONARIES, "attribution"),
    "feature effects, ig": lambda model, hf, tmp: feature_effects(model, TASK, DICTIONARIES, "ig", steps=2),
    "feature edges": lambda model, hf, tmp: feature_edges(
        model, TASK, DICTIONARIES, ["z.1.error", "resid_post.2.error"]
    ),
    "head importance, task": lambda model, hf, tmp: interp.attention.head_importance(model, TASK, "gradient"),
    "head importance, text": lambda model, hf, tmp: interp.attention.head_importance(model, IDS, "relp"),
    "neuron relevance, task": lambda model, hf, tmp: neuron_relevance(model, TASK),
    "neuron relevance, text": lambda model, hf, tmp: neuron_relevance(model, IDS),
    "trace": lambda model, hf, tmp: trace(SMALL, [5, 7, 9, 11], CODERS, 8, max_nodes=30).matrix().toarray(),
    "logistic": lambda model, hf, tmp: logistic(IDS.double(), (IDS[:, :2] > 20).double())[0],
    "train": lambda model, hf, tmp: _trained(lambda d: train(d, BATCHES, 3, settings=QUICK)),
    "finetune": lambda model, hf, tmp: _trained(lambda d: finetune(model, d, IDS, 2, settings=QUICK)),
    "load and train": lambda model, hf, tmp: _loaded(tmp),
    "transcoders": lambda model, hf, tmp: train_transcoders(
        SMALL, [1], IDS, directory=tmp, tokens=40, width=16, batch=8, options={"k": 2}, settings=QUICK
    )[1].W_dec.detach(),
    "train_backcopy": lambda model, hf, tmp: train_backcopy(2, width=16, length=12, batch=4).scores,
    "train_kth_smallest": lambda model, hf, tmp: next(
        train_kth_smallest(length=4, numbers=8, width=16, steps=2, batch=4).parameters()
    ),
    "gradient scores, text": lambda model, hf, tmp: GradientScores(IDS)(hf),
    "gradient scores, task": lambda model, hf, tmp: GradientScores(TASK)(hf),
    "greedy pruning": lambda model, hf, tmp: np.array(
        [(r[1], r[2]) for r in GreedyHeadPruning(rescore=GradientScores(IDS), budget=0.7, step=0.1).plan(hf).reasons]
    ),
    "calibration": lambda model, hf, tmp: search_heads(hf, TASK, alpha=1.0, initial=0),
    "backward": lambda model, hf, tmp: backward(
        verified(model), IDS, torch.full((4,), 9), lambda logits: logits[:, 3], {"z"}
    ).gradients["z", 1],
}


def _numbers(found):
    found = getattr(found, "scores", found)
    if isinstance(found, dict):
        return np.array(list(found.values()))
    if isinstance(found, xr.DataArray):
        return found.values
    return found.detach().numpy() if isinstance(found, torch.Tensor) else np.asarray(found)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("name", ENTRIES)
def test_what_takes_gradients_gives_the_same_in_inference_mode(model, hf, tmp_path, name, mode):
    outside = _numbers(ENTRIES[name](model, hf, tmp_path / "outside"))
    assert np.abs(outside).max() > 0
    with mode():
        inside = _numbers(ENTRIES[name](model, hf, tmp_path / "inside"))
        assert torch.is_inference_mode_enabled() is (mode is torch.inference_mode)
        assert not torch.is_grad_enabled()
    assert np.array_equal(inside, outside)


def test_tasks_and_texts_made_in_inference_mode_are_differentiated_through(model):
    with torch.inference_mode():
        task, ids = random_task(n=3), corpus("random", model, 4, 10, prefix=False)
        pieces = [task[[2, 0]], task.to("cpu"), task.with_reference(torch.ones(3, VOCABULARY))]
    assert ids.is_inference()
    for made in (task, *pieces):
        assert not any(tensor.is_inference() for tensor in (made.clean, made.right, made.positions["end"]))
        attribution(model, made, "heads")
        attribution(model, made, "heads", metric="kl", rules="relp")
    neuron_relevance(model, ids)


def test_a_model_loaded_in_inference_mode_takes_gradients():
    with torch.inference_mode():
        model = interp.load("toy-induction")
    assert not any(weight.is_inference() for weight in model.parameters())
    attribution(model, interp.task("induction", model, n=2), "heads")


def test_weights_that_were_made_in_inference_mode_are_named():
    with torch.inference_mode():
        model = boot(hugging_face_model("llama"))
        dictionary = TopK(32, 64, 4, reads=Place("resid_post", 1))
    assert all(weight.is_inference() for weight in model.parameters())
    with pytest.raises(InterpError, match=r"made inside torch.inference_mode\(\)"):
        attribution(model, TASK, "heads")
    with pytest.raises(InterpError, match=r"made inside torch.inference_mode\(\)"):
        train(dictionary, BATCHES, 3, settings=QUICK)


def test_other_errors_pass_as_they_are(model):
    with pytest.raises(RuntimeError, match="mine") as raised, gradients():
        raise RuntimeError("mine")
    assert not isinstance(raised.value, InterpError)


def test_a_plan_made_permanent_in_inference_mode_leaves_weights_that_take_gradients(hf):
    plan = MagnitudePruning(budget=0.5, unit="neuron").plan(hf)
    with torch.inference_mode():
        own = plan.made_permanent(hf)
        with plan.applied(hf):
            scores = GradientScores(IDS)(hf)
    assert not any(weight.is_inference() for weight in own.parameters())
    assert np.array_equal(scores, GradientScores(IDS)(own))
