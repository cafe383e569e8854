"""Pruning: parts are really gone, what is left computes what zeroing computes, and findings decide what stays."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from caches import cache_of
from families import FAMILIES, boot, hugging_face_model, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from prompts import random_task

import interp
from interp.efficiency import Cost, Plan, Text, deploy, deployment, tradeoff
from interp.efficiency.decoding import storage_bytes
from interp.efficiency.kv_cache import FullCache, RetrievalCache, StreamingCache
from interp.efficiency.pruning import (
    ActivationNormPruning,
    BlockPruning,
    GradientScores,
    GreedyHeadPruning,
    HeadPruning,
    MagnitudePruning,
    MultiPruner,
    NeuronPruning,
    PruningPlan,
    RandomPruning,
    SparsePlan,
    SparsePruning,
    count,
)
from interp.efficiency.pruning.anatomy import anatomy
from interp.efficiency.pruning.multipruner import block_parameters
from interp.efficiency.pruning.sparse_plan import matrices
from interp.errors import UsageError
from interp.results import scores
from interp.results.findings import HeadImportance, LayerRedundancy, NeuronRelevance, RetrievalHeads

TOKENS = torch.randint(4, 50, (2, 9), generator=torch.Generator().manual_seed(1))
GREEDY = {"do_sample": False, "eos_token_id": 1_000}  # nothing ends a text
TEXT = {"source": TOKENS, "n": 2, "length": 9}


@pytest.fixture
def model():
    return deploy(tiny("llama"))


def about(model):
    found = deployment(model)
    return {"model": found.name, "fingerprint": found.fingerprint}


def heads_of(model, values):
    config = model.config
    groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    evidence = {"scores": scores(np.asarray(values, dtype=float), ("layer", "head"))}
    return HeadImportance(**about(model), evidence=evidence, n_kv_heads=groups)


def random_heads(model, seed=0):
    shape = model.config.num_hidden_layers, model.config.num_attention_heads
    return heads_of(model, np.random.default_rng(seed).random(shape))


def neurons_of(model, values):
    return NeuronRelevance(**about(model), evidence={"scores": scores(values, ("layer", "neuron"))})


def random_neurons(model, seed=0):
    body = anatomy(model)
    width = len(body.mlp(0).neurons)
    return neurons_of(model, np.random.default_rng(seed).random((len(body.layers), width)))


def layers_of(model, influence, distance=None):
    n = len(influence)
    distance = np.zeros((n, n)) if distance is None else distance
    evidence = {
        "influence": scores(np.asarray(influence, dtype=float), ("layer",)),
        "distance": scores(distance, ("layer", "length"), allow_nan=True),
    }
    return LayerRedundancy(**about(model), evidence=evidence)


def plan_of(model, **removed):
    return PruningPlan(**about(model), method="by hand", budget=0.5, **removed)


def zeroed(family, heads, neurons):
    """The same model with columns of the outputs set to zero, which a smaller matrix has to equal."""
    original = hugging_face_model(family)
    body = anatomy(whole := deploy(boot(original)))
    with torch.no_grad():
        for layer, gone in heads:
            part, output = body.attention(layer), body.attention(layer).output
            columns = (torch.tensor(gone)[:, None] * part.head_dim + torch.arange(part.head_dim)).flatten()
            output.weight.index_fill_(0 if type(output).__name__ == "Conv1D" else 1, columns, 0)
        for layer, gone in neurons:
            output = body.mlp(layer).output
            output.weight.index_fill_(0 if type(output).__name__ == "Conv1D" else 1, torch.tensor(gone), 0)
    return whole(TOKENS).logits


def removed_heads(family, model):
    """One key-value head of one layer, one query head of each key-value head of another, all heads of a third."""
    per = anatomy(model).attention(0).per_group
    groups, total = anatomy(model).kv_heads, anatomy(model).heads
    one = tuple(range(per)) if groups > 1 else (0,)
    each = tuple(group * per for group in range(groups)) if per > 1 else (1, 2)
    return ((0, one), (1, each), (2, tuple(range(total))))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_cut_computes_what_is_zeroed(family):
    model = deploy(tiny(family))
    heads = removed_heads(family, model)
    width = len(anatomy(model).mlp(0).neurons)
    neurons = ((0, (0, 5, 17)), (1, tuple(range(1, width, 2))), (2, tuple(range(width))))
    before = count(model, 9)
    with plan_of(model, heads=heads, neurons=neurons).applied(model):
        assert count(model, 9).parameters < before.parameters
        torch.testing.assert_close(model(TOKENS).logits, zeroed(family, heads, neurons), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_neurons_and_blocks_can_be_taken_from_every_family(family):
    model = deploy(tiny(family))
    neurons = ((1, (0, 5, 17)),)
    with plan_of(model, neurons=neurons).applied(model):
        torch.testing.assert_close(model(TOKENS).logits, zeroed(family, (), neurons), atol=1e-5, rtol=1e-5)
    with plan_of(model, blocks=(1,)).applied(model):
        generated = model.generate(TOKENS, max_new_tokens=4, **GREEDY)
        again = torch.cat([TOKENS, model(generated[:, :-1]).logits[:, 8:].argmax(-1)], 1)
        assert torch.equal(generated, again)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_a_model_without_a_block_computes_what_the_others_compute(family):
    model = deploy(tiny(family))
    shorter = hugging_face_model(family)
    blocks = anatomy(deploy(boot(shorter)))
    del getattr(shorter.base_model, blocks.name)[1]
    if family == "gemma2":
        kinds = shorter.config.layer_types
        shorter.config.layer_types = [*kinds[:1], *kinds[2:]]
        shorter.config.num_hidden_layers = 3
    with plan_of(model, blocks=(1,)).applied(model):
        torch.testing.assert_close(model(TOKENS).logits, shorter(TOKENS, use_cache=False).logits, atol=1e-4, rtol=1e-4)
        assert deployment(model).layers == [0, *range(2, len(blocks.layers))]


EVERYTHING = {
    "blocks": (1,),
    "heads": ((0, (2, 3)), (2, (0, 1, 2, 3))),
    "neurons": ((0, (1, 2, 3)), (2, tuple(range(48)))),
}


def test_a_plan_is_undone_to_the_bit(model):
    before = {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}
    clean, config, names = model(TOKENS).logits, model.config.to_dict(), [n for n, _ in model.named_modules()]
    with pytest.raises(RuntimeError, match="in between"), plan_of(model, **EVERYTHING).applied(model):
        raise RuntimeError("in between")
    after = model.state_dict()
    assert all(after[name].data_ptr() == at and torch.equal(after[name], was) for name, (at, was) in before.items())
    assert torch.equal(model(TOKENS).logits, clean)
    assert model.config.to_dict() == config
    assert [n for n, _ in model.named_modules()] == names
    assert deployment(model).groups == [[0, 1]] * 3
    assert [block.self_attn.layer_idx for block in model.model.layers] == [0, 1, 2]
    assert not [key for module in model.modules() for key in vars(module) if key.startswith("kept_")]


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma3"])
def test_a_permanent_model_is_smaller_and_loads_and_generates_by_itself(family, tmp_path):
    model = deploy(tiny(family))
    plan = plan_of(model, blocks=(1,), heads=removed_heads(family, model)[::2], neurons=((0, (1, 2, 3)),))
    with plan.applied(model):
        applied, wanted = model(TOKENS).logits, model.generate(TOKENS, max_new_tokens=5, **GREEDY)
    own = plan.made_permanent(model)
    assert torch.equal(own(TOKENS).logits, applied)
    interp.efficiency.save(own, tmp_path)
    again = interp.efficiency.load(tmp_path)
    assert torch.equal(again(TOKENS).logits, applied)
    assert torch.equal(again.generate(TOKENS, max_new_tokens=5, **GREEDY), wanted)
    assert deployment(again) == deployment(own)
    assert json.loads((tmp_path / "config.json").read_text()).keys() >= {"architectures"}
    assert (tmp_path / "model.safetensors").stat().st_size < 4 * count(own).parameters + 20_000


def test_parameters_and_flops_of_the_ledger_are_those_of_the_model_afterwards(model):
    plan = plan_of(model, **EVERYTHING)
    found = plan.ledger(model, 9, batch=2)
    own = count(plan.made_permanent(model), 9)
    assert found.weight_bytes.after == own.weight_bytes == storage_bytes(plan.made_permanent(model))
    assert found.prefill_flops.after == 2 * own.prefill_flops
    assert found.decode_flops.after == 2 * own.decode_flops
    assert found.cache_bytes.after == 2 * own.cache_bytes
    # block 0 keeps 1 key-value head of 2 with 45 neurons, block 2 neither
    assert block_parameters(plan.made_permanent(model)) == 32 * (2 * 16 + 2 * 8) + 3 * 45 * 32 + 2 * 64
    assert own.cache_bytes == 2 * 9 * 4 * (8 + 1)
    assert found.weight_bytes.real


def test_a_cache_holds_only_the_groups_that_are_left(model):
    with plan_of(model, **EVERYTHING).applied(model):
        cache = cache_of(model(TOKENS, use_cache=True))
        assert [layer.keys.shape for layer in cache.layers] == [(2, 1, 9, 8), (2, 1, 9, 1)]
        assert sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) == 2 * count(model, 9).cache_bytes


@pytest.mark.parametrize("implementation", ["dynamic", "static"])
@pytest.mark.parametrize("first", [0, 2])
def test_generation_without_attention_in_a_block_counts_positions_right(model, first, implementation):
    with plan_of(model, heads=((first, (0, 1, 2, 3)),)).applied(model):
        wanted = TOKENS
        for _ in range(4):
            wanted = torch.cat([wanted, model(wanted, use_cache=False).logits[:, -1:].argmax(-1)], 1)
        options = {"cache_implementation": "static", "disable_compile": True} if implementation == "static" else {}
        assert torch.equal(model.generate(TOKENS, max_new_tokens=4, **GREEDY, **options), wanted)


def test_padded_batches_equal_single_prompts(model):
    prompts = [TOKENS[0, :4], TOKENS[1]]
    padded = torch.full((2, 9), 3)
    for row, prompt in enumerate(prompts):
        padded[row, 9 - len(prompt) :] = prompt
    mask = torch.tensor([[0] * 5 + [1] * 4, [1] * 9])
    with plan_of(model, **EVERYTHING).applied(model):
        together = model.generate(padded, attention_mask=mask, max_new_tokens=5, **GREEDY)[:, 9:]
        for row, prompt in enumerate(prompts):
            alone = model.generate(prompt[None], max_new_tokens=5, **GREEDY)[:, len(prompt) :]
            assert torch.equal(together[row, : alone.shape[1]], alone[0])


def retrieval(model):
    evidence = {name: scores(np.eye(3, 4), ("layer", "head")) for name in ("scores", "low", "high")}
    return RetrievalHeads(**about(model), evidence=evidence, n_kv_heads=2)


@pytest.mark.parametrize("first", [0, 1])
def test_plans_for_the_cache_compose_with_plans_that_remove(model, first):
    pruning = plan_of(model, blocks=(1,), heads=((0, (2, 3)), (2, (0, 1, 2, 3))))
    for cache in (
        FullCache().plan(model),
        StreamingCache(budget=0.5, sinks=1, length=12).plan(model),
        RetrievalCache(retrieval=retrieval(model), budget=0.6, sinks=1, window=2, length=12).plan(model),
    ):
        both = (pruning + cache, cache + pruning)[first]
        with both.applied(model):
            found = cache_of(model(TOKENS, use_cache=True))
            assert [len(entries) for entries in found.entries()] == [1, 0]
            composed = model.generate(TOKENS, max_new_tokens=4, **GREEDY)
        own = both.made_permanent(model)
        assert torch.equal(own.generate(TOKENS, max_new_tokens=4, **GREEDY), composed)
        if cache.method == "full":
            with pruning.applied(model):
                assert torch.equal(model.generate(TOKENS, max_new_tokens=4, **GREEDY), composed)


def test_the_ledger_of_plans_together_has_the_bytes_of_the_cache_that_is_left(model):
    pruning = plan_of(model, blocks=(1,), heads=((0, (2, 3)),))
    cache = RetrievalCache(retrieval=retrieval(model), budget=0.6, sinks=1, window=2, length=12).plan(model)
    both = pruning + cache
    with both.applied(model):
        held = cache_of(model(TOKENS, use_cache=True)).bytes()
    found = both.ledger(model, TOKENS.shape[1], len(TOKENS))
    assert found.cache_bytes.after == pytest.approx(held)
    with pruning.applied(model):
        assert found.weight_bytes.after == storage_bytes(model)
        alone = cache.ledger(model, TOKENS.shape[1], len(TOKENS))
    assert found.decode_flops.after == pytest.approx(alone.decode_flops.after)


def test_a_cache_that_has_no_attention_in_its_first_block_still_counts(model):
    pruning = plan_of(model, heads=((0, (0, 1, 2, 3)),))
    with pruning.applied(model):
        wanted = model.generate(TOKENS, max_new_tokens=4, **GREEDY)
    with (pruning + FullCache().plan(model)).applied(model):
        assert torch.equal(model.generate(TOKENS, max_new_tokens=4, **GREEDY), wanted)


def test_plans_that_remove_compose_by_original_numbers(model):
    one = plan_of(model, blocks=(0,), neurons=((1, (0, 1)),))
    other = plan_of(model, heads=((2, (0, 1)),), neurons=((1, (1, 7)), (0, (3,))))
    merged = plan_of(model, blocks=(0,), heads=((2, (0, 1)),), neurons=((1, (0, 1, 7)),))
    with merged.applied(model):
        wanted = model(TOKENS).logits
    for both in (one + other, other + one):
        with both.applied(model):
            torch.testing.assert_close(model(TOKENS).logits, wanted)


# Methods


def methods(model, budget):
    heads, neurons = random_heads(model), random_neurons(model)
    layers = layers_of(model, [0.3, 0.1, 0.2])
    return {
        "heads": HeadPruning(importance=heads, budget=budget),
        "query heads": HeadPruning(importance=heads, budget=budget, unit="head"),
        "greedy": GreedyHeadPruning(rescore=GradientScores(**TEXT), budget=budget, step=0.3),
        "neurons": NeuronPruning(relevance=neurons, budget=budget),
        "norm": ActivationNormPruning(budget=budget, **TEXT),
        "blocks": BlockPruning(layers=layers, budget=budget),
        "depth": BlockPruning(by="depth", budget=budget),
        "runs": BlockPruning(layers=layers, by="distance", budget=budget),
        "multipruner": MultiPruner(budget=budget, channels=8, **TEXT),
        "magnitude": MagnitudePruning(budget=budget, unit="neuron"),
        "random": RandomPruning(budget=budget, unit="head"),
        "magnitude zeros": SparsePruning(budget=budget),
        "wanda": SparsePruning(by="wanda", budget=budget, **TEXT),
        "relevance zeros": SparsePruning(relevance=neurons, budget=budget),
    }


def test_everything_kept_is_the_dense_model_to_the_bit(model):
    clean = model(TOKENS).logits
    for name, method in methods(model, 1.0).items():
        for plan in (method.plan(model), method.random_plan(model), method.inverted_plan(model)):
            with plan.applied(model):
                assert torch.equal(model(TOKENS).logits, clean), name


def test_every_method_has_twins_of_the_same_budget_that_read_back(model, tmp_path):
    clean, dense = model(TOKENS).logits, count(model)
    for name, method in methods(model, 0.67).items():
        plan, drawn, worst = method.plan(model), method.random_plan(model, seed=3), method.inverted_plan(model)
        assert method.plan(model) == plan, name
        assert method.random_plan(model, seed=3) == drawn, name
        plan.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == plan, name
        sizes = []
        for one in (plan, drawn, worst):
            with one.applied(model):
                sizes.append(count(model).parameters)
                assert not torch.equal(model(TOKENS).logits, clean), name
        assert len(plan.to_frame()), name
        plan.figure()
        if plan.real:
            assert max(sizes) < dense.parameters, name
        if name not in ("multipruner",):
            assert len(set(sizes)) == 1, name
        assert plan.summary().startswith(plan.method)


def test_the_planted_heads_are_the_ones_kept(model):
    values = np.zeros((3, 4))
    values[0, 1], values[2, 2], values[2, 3] = 5, 1, 2
    plan = HeadPruning(importance=heads_of(model, values), budget=0.34).plan(model)
    with plan.applied(model):
        assert deployment(model).groups == [[0], [], [1]]
    kept = plan.to_frame().query("kept == 1")
    assert list(zip(kept["layer"], kept["number"], kept["score"], strict=True)) == [(0, 0, 5), (2, 1, 3)]
    worst = HeadPruning(importance=heads_of(model, values), budget=0.34).inverted_plan(model)
    assert dict(worst.heads).keys() >= {0, 2}


def test_query_heads_go_evenly_from_the_key_value_heads_of_a_layer(model):
    values = np.array([[9, 1, 1, 9], [5, 5, 5, 5], [1, 2, 2, 1]])
    plan = HeadPruning(importance=heads_of(model, values), budget=0.5, unit="head").plan(model)
    assert plan.heads == ((0, (1, 2)), (2, (0, 1, 2, 3)))
    with plan.applied(model):
        assert deployment(model).groups == [[0, 1], [0, 1], []]
        assert model.model.layers[0].self_attn.num_key_value_groups == 1


def test_the_planted_neurons_and_blocks_are_the_ones_kept(model):
    values = np.zeros((3, 48))
    values[1, 5:10] = 3
    plan = NeuronPruning(relevance=neurons_of(model, values), budget=5 / 144).plan(model)
    with plan.applied(model):
        assert anatomy(model).mlp(1).neurons == (5, 6, 7, 8, 9)
        assert anatomy(model).mlp(0).neurons == ()
    plan = NeuronPruning(relevance=neurons_of(model, values), budget=5 / 48, across="layer").plan(model)
    with plan.applied(model):
        assert anatomy(model).mlp(1).neurons == (5, 6, 7, 8, 9)
        assert len(anatomy(model).mlp(0).neurons) == 5
    assert BlockPruning(layers=layers_of(model, [0.3, 0.1, 0.2]), budget=0.67).plan(model).blocks == (1,)
    assert BlockPruning(by="depth", budget=0.67).plan(model).blocks == (1,)
    runs = np.array([[0.1, 0.4, 0.6], [0.2, 0.1, np.nan], [0.3, np.nan, np.nan]])
    layers = layers_of(model, [0.1, 0.3, 0.3], runs)
    assert BlockPruning(layers=layers, by="distance", budget=0.34).plan(model).blocks == (1, 2)
    assert BlockPruning(layers=layers, by="distance", budget=0.34).inverted_plan(model).blocks == (0, 1)


def test_greedy_scores_again_what_is_left_after_every_step(model):
    seen = []

    def rescore(current):
        seen.append([list(groups) for groups in deployment(current).groups])
        values = np.full((3, 4), np.nan)
        for layer, groups in enumerate(deployment(current).groups):
            for group in groups:
                # alone, a group is worth most: the first to go protects its neighbour
                values[layer, 2 * group : 2 * group + 2] = 10 * (len(groups) == 1) + layer + 0.1 * group
        return values

    plan = GreedyHeadPruning(rescore=rescore, budget=0.5, step=1 / 6).plan(model)
    with plan.applied(model):
        assert deployment(model).groups == [[1], [1], [1]]
    assert seen == [[[0, 1]] * 3, [[1], [0, 1], [0, 1]], [[1], [1], [0, 1]]]
    at_once = HeadPruning(importance=heads_of(model, np.arange(12).reshape(3, 4)), budget=0.5).plan(model)
    assert at_once.heads == ((0, (0, 1, 2, 3)), (1, (0, 1)))
    assert deployment(model).groups == [[0, 1]] * 3


@pytest.mark.parametrize("target", [TOKENS, random_task(n=3)], ids=["text", "task"])
def test_gradient_scores_of_the_deployed_model_are_those_of_the_analysis(target):
    bridge = tiny("llama")
    ours = GradientScores(target, n=2, length=9, by_layer=False)(deploy(bridge))
    theirs = interp.attention.head_importance(bridge, target, "gradient", n=2, length=9).scores.values
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)


def test_activation_norms_keep_the_neurons_that_write_and_skip_drops_the_first_tokens(model):
    with torch.no_grad():
        weight = model.model.layers[1].mlp.down_proj.weight
        weight[:, 10:] *= 1e-4
    plan = ActivationNormPruning(budget=10 / 48, **TEXT).plan(model)
    assert dict(plan.neurons)[1] == tuple(range(10, 48))
    tokens = TOKENS.clone()
    tokens[:, 1:] = tokens[:, 1:2]
    whole = ActivationNormPruning(source=tokens, n=2, length=9).scores(model)
    rest = ActivationNormPruning(source=tokens, n=2, length=9, skip=8).scores(model)
    assert (rest <= whole).all()
    assert (rest < whole).any()


def test_multipruner_shares_what_it_removes_among_its_three_stages(model):
    whole = block_parameters(model)
    plan = MultiPruner(budget=0.7, shares=(0.4, 0.4, 0.2), channels=4, **TEXT).plan(model)
    with plan.applied(model):
        kept = block_parameters(model) / whole
    assert 0.55 < kept <= 0.7
    relevance = random_neurons(model)
    guided = MultiPruner(budget=0.9, shares=(0, 1, 0), channels=4, relevance=relevance, **TEXT).plan(model)
    for layer, gone in guided.neurons:
        lowest = np.argsort(relevance.scores.values[layer])[: len(gone)]
        assert sorted(lowest) == list(gone)
    blunt = MultiPruner(budget=0.9, shares=(1, 0, 0), **TEXT).plan(model)
    assert all(len(heads) == 4 for _, heads in blunt.heads)
    assert all(len(neurons) == 48 for _, neurons in blunt.neurons)
    assert blunt.findings == ()
    assert guided.findings == ("NeuronRelevance",)


def test_zeros_are_as_many_as_asked_for_and_called_simulated(model):
    clean = model.model.layers[0].mlp.up_proj.weight.clone()
    for by in ("magnitude", "wanda"):
        plan = SparsePruning(by=by, budget=0.25, **TEXT).plan(model)
        assert not plan.real
        assert not plan.ledger(model, 9).weight_bytes.real
        with plan.applied(model):
            for module in matrices(model).values():
                assert int((module.weight == 0).sum()) == 0.75 * module.weight.numel()
            kept = model.model.layers[0].mlp.up_proj.weight
            assert torch.equal(kept[kept != 0], clean[kept != 0])
    two = SparsePruning(pattern=(2, 4), relevance=random_neurons(model)).plan(model)
    with two.applied(model):
        for module in matrices(model).values():
            assert ((module.weight.unflatten(1, (-1, 4)) != 0).sum(-1) == 2).all()


def test_wanda_and_relevance_keep_what_their_scores_say(model):
    weight = model.model.layers[1].mlp.down_proj.weight.detach()
    values = np.zeros((3, 48))
    values[1, 3] = 1
    plan = SparsePruning(relevance=neurons_of(model, values), budget=1 / 48).plan(model)
    with plan.applied(model):
        found = model.model.layers[1].mlp.down_proj.weight
        assert torch.equal(found[:, 3], weight[:, 3])
    plan = SparsePruning(by="wanda", budget=0.5, **TEXT).plan(model)
    norm = torch.tensor({(layer, name): n for layer, name, n in plan.inputs}[1, "mlp.down_proj"])
    scored = weight.abs() * norm
    with plan.applied(model):
        kept = model.model.layers[1].mlp.down_proj.weight != 0
        assert (kept.sum(1) == 24).all()
        lowest_kept = scored.masked_fill(~kept, torch.inf).min(1).values
        assert (lowest_kept >= scored.masked_fill(kept, -torch.inf).max(1).values).all()


def test_a_model_with_zeros_is_saved_and_loads(model, tmp_path):
    own = SparsePruning(budget=0.5).plan(model).made_permanent(model)
    interp.efficiency.save(own, tmp_path)
    assert torch.equal(interp.efficiency.load(tmp_path)(TOKENS).logits, own(TOKENS).logits)
    assert isinstance(deployment(interp.efficiency.load(tmp_path)).plans[0], SparsePlan)


@settings(max_examples=12, deadline=None)
@given(budget=st.floats(0.2, 1.0), unit=st.sampled_from(["group", "head", "neuron", "block"]), seed=st.integers(0, 9))
def test_no_more_than_the_budget_is_kept(budget, unit, seed):
    model = deploy(tiny("llama"))
    if unit == "block" and budget < 1 / 3:
        return
    plan = RandomPruning(unit=unit, budget=budget, seed=seed).plan(model)
    with plan.applied(model):
        body = anatomy(model)
        if unit == "neuron":
            shares = [len(body.mlp(layer).neurons) / 48 for layer in body.layers]
        elif unit == "block":
            shares = [len(body.layers) / 3]
        else:
            shares = [sum(len(body.attention(layer).heads) for layer in body.layers) / 12]
        assert max(shares) <= budget + 1e-9
        assert min(shares) > budget - {"neuron": 1 / 48, "block": 1 / 3, "group": 1 / 6, "head": 1 / 6}[unit] - 1e-9
        assert model(TOKENS).logits.isfinite().all()


def test_a_tradeoff_sets_pruning_beside_its_controls(model):
    rows = {"heads": HeadPruning(importance=random_heads(model, 7), budget=0.5), "zeros": SparsePruning(budget=0.5)}
    text, cost = Text(TOKENS, n=2, length=9, scored=4, piece=2), Cost(length=8, steps=2, source=TOKENS, peak=False)
    found = tradeoff(model, rows, quality=[text], cost=cost, repetitions=1).to_frame()
    assert list(found.index) == [
        *("dense", "dense, static cache", "heads", "heads, random", "heads, inverted"),
        *("zeros", "zeros, random", "zeros, inverted"),
    ]
    assert list(found["simulated"]) == [False] * 5 + [True] * 3
    assert found.loc["heads", "weight_bytes"] < found.loc["dense", "weight_bytes"]
    assert found.loc["heads", "cache_bytes"] < found.loc["dense", "cache_bytes"]


# Bad input


def test_parts_that_cannot_be_cut_are_named():
    model = deploy(tiny("olmo2"))
    with pytest.raises(UsageError, match="Olmo2Attention holds its heads in a way that can't be cut"):
        HeadPruning(importance=random_heads(model), budget=0.5).plan(model)
    with pytest.raises(UsageError, match=r"Olmo2Attention holds .* over all heads together"):
        plan_of(model, heads=((0, (0, 1)),)).made_permanent(model)
    model = deploy(tiny("llama"))
    with pytest.raises(
        UsageError, match=r"layer 1 would keep different numbers of query heads \(1 of key-value head 0"
    ):
        plan_of(model, heads=((1, (0,)),)).made_permanent(model)
    with pytest.raises(UsageError, match="removes every block"):
        plan_of(model, blocks=(0, 1, 2)).made_permanent(model)


def test_bad_requests_say_what_would_work(model):
    heads, neurons = random_heads(model), random_neurons(model)
    cases = [
        (lambda: HeadPruning(budget=0.5), "needs a finding of type HeadImportance"),
        (lambda: NeuronPruning(budget=0.5), "needs a finding of type NeuronRelevance; make one with"),
        (lambda: BlockPruning(budget=0.5), "needs a finding of type LayerRedundancy"),
        (lambda: HeadPruning(importance=heads, budget=0), r"must be in \(0, 1\], got 0"),
        (lambda: HeadPruning(importance=heads, budget=0.1).plan(model), "the least that works is 0.167"),
        (lambda: HeadPruning(importance=heads, budget=0.1, unit="head").plan(model), "least that works is 0.167"),
        (lambda: NeuronPruning(relevance=neurons, budget=0.001).plan(model), "the least that works is 0.00694"),
        (lambda: BlockPruning(by="depth", budget=0.2).plan(model), "the least that works is 0.333"),
        (lambda: MultiPruner(budget=0.01, channels=16, **TEXT).plan(model), "is too small; the least that works is"),
        (lambda: HeadPruning(importance=heads, unit="rows"), "unknown unit of heads 'rows'"),
        (lambda: NeuronPruning(relevance=neurons, across="rows"), "unknown range"),
        (lambda: MagnitudePruning(unit="rows"), "unknown unit 'rows'"),
        (lambda: BlockPruning(layers=layers_of(model, [1, 2, 3]), by="harm"), "make it with harm=True"),
        (lambda: SparsePruning(by="relevance"), "needs a finding"),
        (lambda: SparsePruning(pattern=(2, 4), budget=0.25), "keeps 0.5, and a budget of 0.25"),
        (lambda: SparsePruning(pattern=(2, 5)).plan(model).made_permanent(model), "can't be divided into runs of 5"),
        (lambda: GreedyHeadPruning(step=0), "step"),
        (lambda: ActivationNormPruning(skip=128), "skip must be"),
    ]
    for make, message in cases:
        with pytest.raises(UsageError, match=message):
            make()
    other = deploy(tiny("llama", seed=1))
    for method in (HeadPruning(importance=heads), NeuronPruning(relevance=neurons), SparsePruning(relevance=neurons)):
        with pytest.raises(UsageError, match="find it anew"):
            method.plan(other)


def test_methods_are_made_by_name_with_the_findings_that_they_want(model):
    made = interp.efficiency.make("heads", [random_heads(model)], budget=0.5)
    assert made.plan(model) == HeadPruning(importance=random_heads(model), budget=0.5).plan(model)
    made = interp.efficiency.make("multipruner", [random_neurons(model)], budget=0.5, **TEXT)
    assert made.relevance is not None
    assert isinstance(interp.efficiency.make("sparse", pattern=(2, 4)), SparsePruning)
    assert isinstance(interp.efficiency.make("neurons", [random_neurons(model)]), NeuronPruning)
