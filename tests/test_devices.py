"""Everything public runs on a device that is not the processor, and mixes tensors of two devices nowhere."""

from __future__ import annotations

import functools
import warnings

import accelerate
import numpy as np
import pytest
import torch
from command_line import command
from elsewhere import ELSEWHERE, Elsewhere, MixedDevices, lies_elsewhere
from families import boot, hugging_face_model, tiny
from prompts import random_task
from test_attention_retrieval import COPY_LENGTH, induction_samples

import interp
from interp.attention.sinks.census import census
from interp.circuits.exact import EdgeExperiment
from interp.efficiency import METHODS, Cost, Text, calibration, deploy, deployment, make, tradeoff
from interp.efficiency.kv_cache.geometry import geometry as shape_of
from interp.efficiency.pruning import GradientScores
from interp.errors import UsageError
from interp.features import geometry
from interp.features.interventions import functions
from interp.patching.experiment import Experiment
from interp.results import findings as kinds
from interp.results import scores

TEXTS = torch.randint(4, 50, (4, 24), generator=torch.Generator().manual_seed(0))
PROMPT = [5, 7, 9, 11, 5, 7]


@pytest.fixture(autouse=True)
def elsewhere():
    with Elsewhere() as device, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield device


@functools.cache
def model(family="llama", **changes):
    sizes = {} if family == "gpt2" else {"intermediate_size": 64}  # groups of 32 weights, as kernels take them
    made = tiny(family, **sizes, **changes).to(ELSEWHERE)
    assert all(lies_elsewhere(weight) for weight in made.parameters())
    return made


@functools.cache
def toy(name="toy-induction"):
    return interp.load(name, device=ELSEWHERE)


@functools.cache
def hf(family="llama"):
    return deploy(model(family))


def task(n=2):
    return random_task(n=n)


# The device itself


class TestTheDevice:
    def test_it_refuses_what_cuda_refuses(self):
        there, here = torch.ones(3, 4).to(ELSEWHERE), torch.ones(3, 4)
        for mix in (
            lambda: there + here,
            lambda: here @ there.T,
            lambda: torch.cat([there, here]),
            lambda: here[torch.tensor([0], device=ELSEWHERE)],
            lambda: torch.where(here > 0, there, 0.0),
            lambda: torch.nn.functional.linear(here, there),
            lambda: there.masked_fill(here > 0, 0),
        ):
            with pytest.raises(MixedDevices):
                mix()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        with pytest.raises(NotImplementedError):
            torch._convert_weight_to_int4pack_for_cpu(torch.ones(64, 64, dtype=torch.int32, device=ELSEWHERE), 1)
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, generator=torch.Generator(), device=ELSEWHERE)

    def test_it_allows_what_cuda_allows(self):
        there = torch.ones(3, 4).to(ELSEWHERE)
        for found in (there * torch.tensor(2.0), there[torch.tensor([0])], there.sum(), torch.zeros_like(there)):
            assert found.device == ELSEWHERE
        here = torch.zeros(3, 4)
        here.copy_(there)
        assert here.device.type == "cpu"
        assert here.sum() == 12

    def test_it_counts_waits_and_transfers(self, elsewhere):
        there = torch.ones(3, 4).to(ELSEWHERE)
        assert elsewhere.transfers == [("cpu", "elsewhere", 48)]
        assert there.sum() == 12  # the answer comes home
        assert bool(there.any())
        assert there.nonzero().shape == (12, 2)
        assert elsewhere.waits == 3

    def test_a_mix_in_a_backward_pass_is_seen(self):
        class Wrong(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return x.clone()

            @staticmethod
            def backward(ctx, gradient):
                return gradient * torch.ones(3)

        weight = torch.ones(3, device=ELSEWHERE, requires_grad=True)
        with pytest.raises(MixedDevices):
            Wrong.apply(weight).sum().backward()

    def test_gradients_move_back_with_what_was_moved(self):
        weight = torch.ones(3, requires_grad=True)
        (weight.to(ELSEWHERE) * torch.ones(3, device=ELSEWHERE)).sum().backward()
        assert weight.grad.device.type == "cpu"


# Analyses


def small():
    return model(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)


def dictionary(place="resid_post.1", width=32):
    from interp.features import Place, TopK

    made = TopK(width, 48, k=4)
    made.reads = made.writes = Place.parse(place)
    return made.to(ELSEWHERE)


def sink_heads():
    return interp.attention.sink_heads(model(), {"a": TEXTS[:2], "b": TEXTS[2:]}, prefix=False)


ANALYSES = {
    "patching heads": lambda: interp.patching.activation(model(), task(), "heads"),
    "patching positions": lambda: interp.patching.activation(model(), task(), "heads", by_position=True),
    "patching mlps": lambda: interp.patching.activation(
        model(), task(), "mlp_out", mode="noising", source="mean", corpus=TEXTS
    ),
    "patching groups": lambda: interp.patching.groups(model(), task(), {"a": ["a0.h1", "m1"]}),
    "intervene": lambda: interp.patching.intervene(model(), task(), {"resid_pre.1": lambda x: 2 * x}),
    "performance": lambda: interp.patching.performance(model(), task()),
    "attribution": lambda: interp.patching.attribution(model(), task(), "heads", by_position=True),
    "relp": lambda: interp.patching.attribution(model(), task(), "heads", rules="relp"),
    "attribution ig": lambda: interp.patching.attribution(model(), task(), "mlp_out", steps=3),
    "atp*": lambda: interp.patching.atp_star(model(), task(), "heads"),
    "agreement": lambda: interp.patching.agreement(model(), task(), ("attribution", "relp"), ("heads",)),
    "feature effects": lambda: interp.patching.feature_effects(model(), task(), dictionary(), "ig", steps=2),
    "feature effects, exact": lambda: interp.patching.feature_effects(model(), task(1), dictionary(), "exact"),
    "eap": lambda: interp.circuits.score_edges(model(), task(), "eap"),
    "eap-ig": lambda: interp.circuits.score_edges(model(), task(), "eap-ig", steps=2),
    "discover": lambda: interp.circuits.discover(model(), task(), edges=20, steps=2),
    "evaluate": lambda: interp.circuits.evaluate(
        small(), interp.circuits.discover(small(), task(), edges=4, steps=1), task(), random=1
    ),
    "exact edges": lambda: interp.circuits.exact_edges(Experiment(small(), task(1))),
    "acdc": lambda: interp.circuits.discover(small(), task(1), "acdc", threshold=1.0),
    "feature circuit": lambda: interp.circuits.evaluate_features(
        model(),
        interp.circuits.feature_circuit(model(), task(), [dictionary()], n=5, edges=True),
        task(),
        [dictionary()],
        random=1,
    ),
    "trace": lambda: interp.tracing.trace(model(), PROMPT, max_nodes=40),
    "trace residuals": lambda: interp.tracing.trace(
        model(), PROMPT, {layer: dictionary(f"resid_post.{layer}") for layer in range(3)}, max_nodes=40
    ),
    "heads of an edge": lambda: interp.tracing.summary(interp.tracing.trace(model(), PROMPT, max_nodes=40)),
    "logit effects": lambda: interp.tracing.logit_effects(interp.tracing.trace(model(), PROMPT, max_nodes=40)),
    "heads": lambda: interp.attention.heads(toy(), text=TEXTS[:2], length=24),
    "importance, ablation": lambda: interp.attention.head_importance(model(), TEXTS, "ablation", replacement="mean"),
    "importance, gradient": lambda: interp.attention.head_importance(model(), TEXTS, "gradient"),
    "importance, relp": lambda: interp.attention.head_importance(model(), task(), "relp"),
    "patterns": lambda: interp.attention.patterns(model(), TEXTS[0]),
    "queries and keys": lambda: interp.attention.query_key_products(model(), TEXTS[0], 1, 2),
    "entropy": lambda: interp.attention.head_entropy(model(), TEXTS),
    "sinks": lambda: interp.attention.survey_sinks(model(), {"a": TEXTS[:2], "b": TEXTS[2:]}, prefix=False),
    "sink metric": lambda: interp.attention.sink_metric(model(), TEXTS),
    "extreme tokens": lambda: interp.attention.extreme_tokens(model(), TEXTS),
    "massive activations": lambda: interp.attention.massive_activations(model(), TEXTS, prefix=False),
    "block a sink": lambda: interp.attention.block_sink(model(), TEXTS, ("key", "value"), skip=4),
    "dormant heads": lambda: interp.attention.dormant_ablation(
        model(), sink_heads(), k=1, domains={"a": TEXTS[:2], "b": TEXTS[2:]}
    ),
    "head costs": lambda: interp.attention.head_costs(model(), [(0, 1)], {"a": TEXTS}, prefix=False),
    "retrieval heads": lambda: interp.attention.retrieval_heads(toy(), induction_samples(), steps=COPY_LENGTH),
    "retrieval masked": lambda: interp.attention.retrieval_causality(
        toy(),
        interp.attention.retrieval_heads(toy(), induction_samples(), steps=COPY_LENGTH),
        induction_samples(),
        ks=(0, 1),
        draws=1,
        text=torch.tensor([sample.tokens for sample in induction_samples(2)]),
        texts=2,
        length=50,
        steps=COPY_LENGTH,
    ),
    "composition": lambda: interp.attention.composition(model(), offsets=0),
    "attention terms": lambda: interp.attention.attention_terms(model(), TEXTS, (1, 2), 8, 3),
    "signals": lambda: interp.attention.trace(model(), task(), (2, 1), "end", "changed", attends=0.0),
    "signals removed": lambda: interp.attention.remove_signal(model(), task(), (2, 1), "end", "changed", draws=2),
    "channels": lambda: interp.attention.scale_channels(model(), task(), (1, 2), [0, [1, 2]], (0.0, 2.0)),
    "redundancy of layers": lambda: interp.relevance.layer_redundancy(model(), TEXTS, n=2, length=16),
    "relevance of neurons": lambda: interp.relevance.neuron_relevance(model(), TEXTS, n=2, length=16),
    "statistics": lambda: interp.statistics.activation_statistics(model(), TEXTS, 2, 16),
}


@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis_runs_on_another_device(name):
    ANALYSES[name]()


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gemma3"])
def test_other_families_do_too(family):
    one = model(family)
    interp.patching.activation(one, task(), "heads")
    interp.patching.attribution(one, task(), "heads", rules="relp")
    interp.attention.sink_metric(one, TEXTS)
    interp.tracing.trace(one, PROMPT, max_nodes=20)


# Dictionaries


class TestDictionaries:
    def test_one_is_harvested_trained_and_judged_where_the_model_is(self, tmp_path, elsewhere):
        for directory in (None, tmp_path / "acts"):
            store = interp.features.harvest(
                model(), "resid_post.1", TEXTS.repeat(9, 1), length=24, directory=directory, exclude_special=False
            )
            made = interp.features.TopK(32, 48, k=4, reads=interp.features.Place.parse("resid_post.1"))
            interp.features.train(made, store.batches(32, epochs=2), steps=4)
            assert lies_elsewhere(made.b_dec)
            interp.features.judge(model(), made, TEXTS, n=4, length=24)
            interp.features.dark_matter(model(), made, TEXTS, n=4, length=24)
            interp.features.read_features(model(), made, store, features=[0, 1], k=2)
            geometry.cooccurrence(made, store, 16)
            geometry.multidimensional_features(made, store, [tuple(range(48))], batch=64)
            assert store.scale() > 0
            assert not lies_elsewhere(store.mean())

    def test_batches_of_an_opened_store_lie_where_the_model_is(self, tmp_path):
        interp.features.harvest(model(), "resid_post.1", TEXTS, length=24, directory=tmp_path / "acts")
        found = interp.features.ActivationStore.open(tmp_path / "acts", model())
        assert lies_elsewhere(next(found.batches(8)))
        assert not lies_elsewhere(next(found.batches(8, device="cpu")))

    def test_dictionaries_from_a_file_serve_a_model_that_is_elsewhere(self, tmp_path):
        dictionary().save(tmp_path)
        made = interp.features.Dictionary.load(tmp_path)
        assert not lies_elsewhere(made.W_dec)
        interp.features.judge(model(), made, TEXTS, n=4, length=24)
        interp.patching.feature_effects(model(), task(), made)
        interp.tracing.trace(model(), PROMPT, {1: made}, max_nodes=20)

    @pytest.mark.parametrize("architecture", interp.features.ARCHITECTURES)
    def test_every_architecture_learns_there(self, architecture, elsewhere):
        kind = interp.features.ARCHITECTURES[architecture]
        made = kind(32, 48).to(ELSEWHERE)
        x = torch.randn(16, 32).to(ELSEWHERE)
        batches = ((x, x, x) for _ in range(3)) if architecture == "gradient_topk" else (x for _ in range(3))
        interp.features.train(made, batches, steps=3)
        assert lies_elsewhere(made.decode(made.encode(x)))

    def test_transcoders_are_trained_and_traced(self, tmp_path):
        made = interp.features.train_transcoders(
            model(), range(3), TEXTS.repeat(2, 1), directory=tmp_path, tokens=128, width=40, batch=32, length=24
        )
        interp.tracing.trace(model(), PROMPT, interp.tracing.Transcoders(made), max_nodes=30)

    def test_features_are_steered_and_finetuned(self):
        made = dictionary()
        edits = functions(model(), interp.features.steer(made, 3, 2.0))
        interp.patching.intervene(model(), task(), edits)
        interp.features.finetune(model(), made, TEXTS, steps=2, n=4, length=24, batch=2)


# Plans


def findings(model):
    """Random findings about a deployed model, by type."""
    shape, found = shape_of(model), deployment(model)
    layers, groups = len(shape.layers), len(shape.groups[0])
    about = {"model": found.name, "fingerprint": found.fingerprint}
    draw = np.random.default_rng(0)
    each = scores(draw.random((layers, groups * shape.query_heads)), ("layer", "head"))
    width = model.config.intermediate_size
    neurons = scores(draw.random((layers, width)), ("layer", "neuron"))
    flat = scores(np.ones((layers, 3)), ("layer", "position"))
    distance = scores(np.zeros((layers, layers)), ("layer", "length"), allow_nan=True)
    influence = scores(draw.random(layers), ("layer",))
    return {
        "HeadImportance": kinds.HeadImportance(**about, evidence={"scores": each}, n_kv_heads=groups),
        "SinkPositions": kinds.SinkPositions(**about, evidence={"attention": flat}, positions=(0,)),
        "NeuronRelevance": kinds.NeuronRelevance(**about, evidence={"scores": neurons}),
        "LayerRedundancy": kinds.LayerRedundancy(**about, evidence={"influence": influence, "distance": distance}),
        "MassiveActivations": kinds.MassiveActivations(
            **about, evidence={"size": flat}, channels=(3,), appears=0, vanishes=2, positions=(0,), ratio=9.0
        ),
    }


LENGTH = 40
TOKENS = torch.randint(4, 50, (2, LENGTH), generator=torch.Generator().manual_seed(0))
_CACHE = {"budget": 0.5, "length": LENGTH}
_PREFILL = {"length": LENGTH, "block": 8}
_TEXT = {"source": TEXTS, "n": 2, "length": 16}
OPTIONS = {
    "full": {"length": LENGTH},
    "streaming": _CACHE | {"sinks": 2},
    "retrieval": _CACHE | {"window": 4},
    "h2o": _CACHE,
    "snapkv": _CACHE | {"window": 4},
    "pyramidkv": _CACHE | {"window": 4},
    "citrus": _CACHE | {"instruction": [5, 6, 7], "prefill_chunk": 16},
    "actqkv": _CACHE | {"window": 8, "sinks": 2},
    "attendre": _CACHE | {"wait": 4, "top": 3, "sinks": 1},
    "quantized": {"bits": 4, "length": LENGTH, "group": 8, "residual": 8},
    "a_shape": _PREFILL | {"budget": 0.8},
    "head_patterns": _PREFILL | {"full": 0.5, "window": 8},
    "flexprefill": _PREFILL | {"least": 0},
    "anchor": _PREFILL | {"theta": 0.5, "step": 2},
    "moba": _PREFILL | {"top_k": 2},
    "sparge": _PREFILL,
    "star": _PREFILL | {"budget": 0.9, "query": 8},
    "greedy_heads": {"budget": 0.8, "rescore": GradientScores(TEXTS, n=2, length=16)},
    "neurons": {},
    "activation_norm": _TEXT,
    "multipruner": _TEXT | {"channels": 8},
    "sparse": {"budget": 0.5, "by": "wanda", **_TEXT},
    "rtn": {"bits": 4, "group": 32},
    "awq": {"group": 16, "steps": 3},
    "gptq": {"group": 16, **_TEXT},
    "adadim": {"group": 16},
    "lorc": {"group": 16, "rank": 3},
    "llm-fp4": {"group": 16, "clips": (1.0,)},
}
GENERATE = {"do_sample": False, "pad_token_id": 3, "eos_token_id": None, "max_new_tokens": 3}


@functools.cache
def statistics(family):
    return interp.statistics.activation_statistics(model(family), TEXTS, 2, 16)


@pytest.fixture(autouse=True)
def _no_text(monkeypatch):
    for module in ("actqkv", "pyramidkv"):
        known = lambda model: {layer: 9.0 - layer for layer in deployment(model).layers}  # noqa: E731
        monkeypatch.setattr(f"interp.efficiency.kv_cache.{module}.attention_spread", known)


def method(name, family, **options):
    there, card = findings(hf(family)), METHODS[name]
    given = []
    for wanted in {**card.needs, **card.takes}.values():
        if "ActivationStatistics" in wanted:
            given.append(statistics(family))
        else:
            given += [there[kind] for kind in wanted.split(" or ") if kind in there][:1]
    if "sinks" in OPTIONS.get(name, {}):
        given = [finding for finding in given if type(finding).__name__ != "SinkPositions"]
    return make(name, given, **{**OPTIONS.get(name, {}), **options})


PLANS = [(name, "llama") for name in METHODS]
PLANS += [(name, "gemma2") for name, card in METHODS.items() if card.family == "kv_cache"]  # its scores are capped


@pytest.mark.parametrize(("name", "family"), PLANS)
def test_a_plan_is_made_and_in_force_on_another_device(name, family):
    plan = method(name, family).plan(hf(family))
    tokens = (TOKENS[:1] if METHODS[name].family == "sparse_attention" else TOKENS).to(ELSEWHERE)
    with plan.applied(hf(family)):
        hf(family).generate(tokens, **GENERATE)


@pytest.mark.parametrize("name", ["w8a8", "rtn"])
def test_eight_bits_too(name):
    plan = method(name, "llama", bits=8, **({"group": None} if name == "rtn" else {})).plan(hf())
    with plan.applied(hf()):
        hf().generate(TOKENS.to(ELSEWHERE), **GENERATE)


def test_a_tradeoff_is_measured_there(monkeypatch):
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.accelerator, name, lambda *_: None)
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.accelerator, name, lambda *_: 1 << 20)
    text = Text(TEXTS, n=2, length=24, scored=8, piece=4, split=None)
    cost = Cost(16, 2, source=TEXTS)
    found = tradeoff(hf(), [method("streaming", "llama")], quality=[text], cost=cost)
    assert found.about["device"] == ELSEWHERE.type


class TestCalibration:
    def test_heads_are_searched_and_answers_measured(self):
        calibration.search_heads(hf(), task(4))
        calibration.answers(hf(), task(4))


# Where a model can lie


@pytest.mark.parametrize("name", ["cuda:7", "warp", "meta"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(name, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(UsageError, match=rf"device '{name}' can't be used.*this machine has cpu; .*to take cpu"):
        interp.load("toy-induction", device=name)
    told = command("patch", "induction", "--model", "toy-induction", "--device", name)
    assert told.returncode == 2
    assert "this machine has cpu" in told.stderr


def test_accelerators_are_named_with_their_numbers(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    with pytest.raises(UsageError, match=r"this machine has cpu, cuda:0, cuda:1; leave it out to take cuda"):
        interp.load("toy-induction", device="warp")


class TestSpread:
    def test_a_model_on_two_devices_is_refused_by_name(self):
        spread = tiny("llama")
        spread.blocks[1].to(ELSEWHERE)
        for use in (lambda: interp.patching.activation(spread, task(), "heads"), lambda: deploy(spread)):
            with pytest.raises(UsageError, match=r"spread over 2 devices \(.* on cpu, model\.layers\.1\..* on private"):
                use()

    def test_a_model_that_accelerate_offloads_is_refused(self):
        original = hugging_face_model("llama")
        accelerate.cpu_offload(original, execution_device="cpu")
        offloaded = boot(original)
        for use in (lambda: interp.patching.activation(offloaded, task(), "heads"), lambda: deploy(offloaded)):
            with pytest.raises(UsageError, match=r"weights of this model are offloaded"):
                use()


# Waiting for the device, and carrying data to and fro


def moved(device, since=0):
    return sum(size for _, _, size in device.transfers[since:])


def test_no_port_of_an_edge_walk_waits_for_the_device(elsewhere):
    edges = EdgeExperiment(Experiment(model(), task(1)))
    edges.metric(slice(0, 1), edges.known)
    before = elsewhere.waits
    edges.metric(slice(0, 1), edges.known)
    assert elsewhere.waits == before


def test_a_census_of_sinks_brings_home_only_what_it_keeps(elsewhere):
    before = len(elsewhere.transfers)
    found = census(model(), TEXTS.to(ELSEWHERE))
    assert not lies_elsewhere(found.received)
    kept = [getattr(found, name) for name in ("received", "own", "value_norm", "resid_norm", "size", "median")]
    assert moved(elsewhere, before) <= sum(x.nbytes for x in kept) + TEXTS.nbytes + 4096


def test_a_stream_of_activations_stays_on_the_device(elsewhere):
    stream = interp.features.harvest(model(), "resid_post.1", TEXTS, length=24)
    before = len(elsewhere.transfers)
    for batch in stream.batches(32):
        assert lies_elsewhere(batch)
    home = [size for _, to, size in elsewhere.transfers[before:] if to == "cpu"]
    assert sum(home) < 4 * 32  # less than one activation
