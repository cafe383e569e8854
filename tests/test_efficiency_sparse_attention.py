"""Sparse prefill: what is chosen, that blocks compute what masks say, and that the model runs on as it should."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from caches import cache_of, using
from families import FAMILIES, tiny
from transformers import StaticCache

from interp.efficiency import Plan, deploy, deployment, load, save
from interp.efficiency.kv_cache import FullCache, RetrievalCache, SnapKVCache, StreamingCache
from interp.efficiency.kv_cache.geometry import geometry
from interp.efficiency.making import make
from interp.efficiency.registry import METHODS
from interp.efficiency.sparse_attention import (
    AnchorAttention,
    AShape,
    BlockList,
    FlexPrefill,
    HeadPatterns,
    MoBA,
    SpargeAttn,
    StarAttention,
    gathered,
    kept_attention,
    text_loss,
)
from interp.efficiency.sparse_attention.anchor import Stripes
from interp.efficiency.sparse_attention.blocks import causal_blocks, window_blocks
from interp.efficiency.sparse_attention.flexible import flexible
from interp.efficiency.sparse_attention.flexprefill import Flexible, divergence
from interp.efficiency.sparse_attention.gathered import dense, windowed
from interp.efficiency.sparse_attention.measuring import kept_mass
from interp.efficiency.sparse_attention.moba import Gated
from interp.efficiency.sparse_attention.observing import observe
from interp.efficiency.sparse_attention.patterns import View, covering, pattern, pooled
from interp.efficiency.sparse_attention.random_blocks import Random
from interp.efficiency.sparse_attention.sparge import Predicted
from interp.efficiency.sparse_attention.star import TwoPhases
from interp.errors import UsageError
from interp.results import scores
from interp.results.findings import RetrievalHeads, SinkPositions

LENGTH, BLOCK = 60, 8
TOKENS = torch.randint(4, 50, (1, LENGTH), generator=torch.Generator().manual_seed(0))
GENERATE = {
    "do_sample": False,
    "return_dict_in_generate": True,
    "output_logits": True,
    "pad_token_id": 3,
    "eos_token_id": None,
}
RULES = {
    "window": {"pattern": "window", "sinks": 3, "back": 1},
    "flexprefill": {"pattern": "flexprefill", "gamma": 0.6, "tau": 0.3, "least": 0},
    "anchor": {"pattern": "anchor", "theta": 0.5, "step": 2},
    "moba": {"pattern": "moba", "top_k": 3},
    "sparge": {"pattern": "sparge", "cdf": 0.5, "similarity": 0.1},
    "star": {"pattern": "star", "context": 2, "anchor": 1, "query": 1},
}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def view(new=LENGTH, total=LENGTH, heads=4, kv_heads=2, width=16, seed=0):
    """Random queries and keys; the first block's keys are alike, as SpargeAttn wants it."""
    keys = draw(kv_heads, total, width, seed=seed + 1)
    keys[:, : total // 2] += 3 * draw(kv_heads, 1, width, seed=seed + 3)
    query = draw(heads, new, width, seed=seed) + 2 * draw(heads, 1, width, seed=seed + 4)
    return View(query, keys, tuple(n * kv_heads // heads for n in range(heads)), BLOCK, 0.25)


def masked(view, values, chosen, softcap=None):
    """Attention by a dense mask."""
    found = view.query.double() @ view.keys[list(view.kv)].double().transpose(1, 2) * view.scaling
    found = found if softcap is None else softcap * torch.tanh(found / softcap)
    found = found.masked_fill(~chosen.to_mask(), float("-inf"))
    return (found.softmax(-1) @ values[list(view.kv)].double()).float()


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-4)


def retrieval(model, values=None):
    """A finding about a deployed model whose query heads have the scores that are given, or random ones."""
    shape, found = geometry(model), deployment(model)
    groups = len(shape.groups[0])
    if values is None:
        values = np.random.default_rng(0).random((len(shape.layers), groups * shape.query_heads))
    each = scores(np.asarray(values, dtype=float), ("layer", "head"), {}, name="retrieval", units="share")
    evidence = {"scores": each, "low": each, "high": each}
    return RetrievalHeads(model=found.name, fingerprint=found.fingerprint, evidence=evidence, n_kv_heads=groups)


def sinks(model, n):
    found = deployment(model)
    attention = scores(np.full((1, n), 0.5), ("layer", "position"), {}, name="attention", units="share")
    about = {"model": found.name, "fingerprint": found.fingerprint}
    return SinkPositions(**about, evidence={"attention": attention}, positions=range(n))


def methods(model, budget=0.75, **options):
    """One method of each kind, for tiny models."""
    common = {"budget": budget, "length": LENGTH, "block": BLOCK, **options}
    return {
        "a_shape": AShape(**common),
        "head_patterns": HeadPatterns(retrieval=retrieval(model), **common),
        "flexprefill": FlexPrefill(least=0, source=TOKENS, **common),
        "anchor": AnchorAttention(step=2, source=TOKENS, **common),
        "moba": MoBA(**common),
        "sparge": SpargeAttn(similarity=0.0, source=TOKENS, **common),
        "star": StarAttention(query=8, **common),
    }


@pytest.fixture(scope="module")
def model():
    return deploy(tiny("llama"))


@pytest.fixture(scope="module")
def plans(model):
    return {name: method.plan(model) for name, method in methods(model).items()}


NAMES = [name for name, card in METHODS.items() if card.family == "sparse_attention"]


def generated(model, tokens, new=6, **options):
    return model.generate(tokens, max_new_tokens=new, **{**GENERATE, **options})


def logits(found, row=0):
    return torch.stack([step[row] for step in found.logits])


class TestBlocks:
    @pytest.mark.parametrize("name", RULES)
    @pytest.mark.parametrize(("new", "total"), [(60, 60), (37, 37), (21, 60), (8, 64)])
    @pytest.mark.parametrize("softcap", [None, 2.0])
    def test_gathered_blocks_compute_what_a_dense_mask_does(self, name, new, total, softcap):
        seen = view(new, total)
        values = draw(2, total, 12, seed=7)
        chosen = pattern(RULES[name]).select(seen)
        found = gathered(seen.query, seen.keys, values, seen.kv, chosen, seen.scaling, softcap)
        close(found, masked(seen, values, chosen, softcap))

    @pytest.mark.parametrize("name", [*RULES, "random"])
    @pytest.mark.parametrize(("new", "total"), [(60, 60), (21, 60)])
    def test_no_query_sees_a_later_key_and_each_sees_itself(self, name, new, total):
        rule = RULES.get(name) or {"pattern": "random", "of": RULES["anchor"], "seed": 0}
        mask = pattern(rule).select(view(new, total)).to_mask()
        at = torch.arange(total)
        assert not mask[:, at > at[-new:, None]].any()
        assert mask[:, torch.arange(new), at[-new:]].all()

    @pytest.mark.parametrize("heads", [[0, 1, 2, 3], [0, 3], [0, 1, 3], [2]])
    def test_heads_that_share_keys_unevenly_are_computed_right(self, heads):
        seen = view()
        mine = View(seen.query[heads], seen.keys, tuple(seen.kv[n] for n in heads), BLOCK, 0.25)
        values = draw(2, LENGTH, 12)
        for rule in ("window", "sparge"):
            chosen = pattern(RULES[rule]).select(mine)
            found = gathered(mine.query, mine.keys, values, mine.kv, chosen, 0.25)
            close(found, masked(mine, values, chosen))
        everything = pattern({"pattern": "dense"}).select(mine)
        close(dense(mine.query, mine.keys, values, mine.kv, BLOCK, 0.25), masked(mine, values, everything))

    def test_a_window_by_design_is_exact(self):
        seen, values = view(30, 60), draw(2, 60, 12)
        at = torch.arange(60)
        mask = (at <= at[30:, None]) & (at > at[30:, None] - 11)
        found = windowed(seen.query, seen.keys, values, seen.kv, BLOCK, 0.25, 11)
        true = (seen.query @ seen.keys[list(seen.kv)].transpose(1, 2) * 0.25).masked_fill(~mask, float("-inf"))
        close(found, true.softmax(-1) @ values[list(seen.kv)])

    @pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
    @pytest.mark.parametrize("name", ["window", "moba", "anchor"])
    def test_flex_attention_takes_the_same_lists(self, name):
        seen, values = view(64, 64), draw(2, 64, 16)
        chosen = pattern(RULES[name]).select(seen)
        found = flexible(seen.query, seen.keys, values, seen.kv, chosen, 0.25, compiled=False)
        if chosen.columns is not None:  # their blocks are computed whole
            wide = chosen.columns.unflatten(2, (-1, BLOCK)).any(3)
            chosen = BlockList(BLOCK, 0, 64, chosen.kept | wide)
        close(found, masked(seen, values, chosen))

    def test_density_counts_causal_blocks_and_columns_as_their_part_of_one(self):
        kept = window_blocks(0, 32, 8, 0)[None]
        kept[..., 0] = True
        assert float(BlockList(8, 0, 32, kept).density()) == pytest.approx(7 / 10)
        columns = torch.zeros(1, 4, 32, dtype=torch.bool)
        columns[:, 2, 8:12] = columns[:, 2, 0:8] = columns[:, 2, 30] = (
            True  # half a block is new, the rest kept or later
        )
        assert float(BlockList(8, 0, 32, kept, columns).density()) == pytest.approx(7.5 / 10)
        assert float(BlockList(8, 0, 32, torch.ones(1, 4, 4, dtype=torch.bool)).density()) == 1

    def test_blocks_lie_on_the_keys_grid(self):
        assert causal_blocks(20, 33, 8).tolist() == [
            [True, True, True, False, False],
            [True, True, True, True, False],
            [True, True, True, True, True],
        ]
        chosen = BlockList(8, 20, 33, causal_blocks(20, 33, 8)[None])
        assert [chosen.queries(n) for n in range(3)] == [(20, 24), (24, 32), (32, 33)]

    def test_means_are_over_the_tokens_that_are_there(self):
        x = torch.arange(10.0).view(1, 10, 1)
        assert pooled(x, 4).flatten().tolist() == [1.5, 5.5, 8.5]
        assert pooled(x, 4, first=6).flatten().tolist() == [0.5, 3.5, 7.5]

    def test_covering_takes_the_fewest_items(self):
        mass = torch.tensor([0.1, 0.5, 0.1, 0.3])
        assert covering(mass, 0.5).tolist() == [False, True, False, False]
        assert covering(mass, 0.6).tolist() == [False, True, False, True]
        assert covering(mass, 0.0, 2).tolist() == [False, True, False, True]
        assert covering(mass, 1.0).all()


class TestPlanted:
    """Patterns that are known are found."""

    def planted(self, column=None, distance=None, length=128):
        """Queries that attend one key, or the one at a distance, and little else."""
        width = 2 * length
        keys = torch.eye(length, width)[None]
        query = torch.zeros(1, length, width)
        for at in range(length):
            target = column if column is not None else at - distance
            query[0, at, max(target, 0) if target <= at else at] = 12.0
        return View(query, keys, (0,), BLOCK, 1.0)

    def test_flexprefill_finds_a_column(self):
        seen = self.planted(column=37)
        chosen = Flexible(gamma=0.9, tau=0.0, least=0).select(seen)
        assert chosen.kept[0, 5:, 37 // BLOCK].all()
        assert float(kept_mass(seen, chosen)) > 0.97
        assert float(chosen.density()) < 0.45
        assert float(kept_mass(seen, Random({"pattern": "window", "sinks": 1, "back": 1}, 0).select(seen))) < 0.6

    @pytest.mark.parametrize("distance", [40, 43])
    def test_flexprefill_finds_a_diagonal_wherever_it_crosses_blocks(self, distance):
        seen = self.planted(distance=distance)
        chosen = Flexible(gamma=0.9, tau=0.0, least=0).select(seen)
        mask = chosen.to_mask()[0]
        at = torch.arange(distance, 128)
        assert mask[at, at - distance].float().mean() > 0.95
        blocks = torch.arange(16)
        assert not chosen.kept[0][(blocks[:, None] - blocks == 9)].all(), "diagonals with nothing on them stay out"

    def test_flexprefill_takes_means_where_they_tell_the_truth(self):
        query, keys = torch.zeros(2, 64, 16), torch.zeros(1, 64, 16)
        keys[0, 16:24, 0] = 8.0  # a block that is alike
        query[0, :, 0] = 1.0
        keys[0, 40, 1], query[1, :, 1] = 8.0, 1.0  # one key, which its block's mean hides
        seen = View(query, keys, (0, 0), BLOCK, 1.0)
        near, far = Flexible(0.9).distances(seen)
        assert near < 0.1 < far
        assert Flexible(0.9, least=0).select(seen).kept[0, 3:, 2].all()

    def test_the_divergence_is_jensen_shannons(self):
        p, q = torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.0, 1.0], [0.5, 0.5]])
        assert divergence(p, q).tolist() == pytest.approx([np.log(2), 0.0])

    def test_stripes_are_the_single_keys_that_matter(self):
        seen = self.planted(column=37)
        chosen = Stripes(theta=-1.0, step=2).select(seen)  # the key lies above the anchor
        late = chosen.columns[0, 6:]
        assert late[:, 37].all()
        assert late.sum() == len(late), "no other key"
        assert float(kept_mass(seen, chosen)) > 0.97

    @pytest.mark.parametrize(("new", "total"), [(60, 60), (21, 60)])
    def test_anchors_are_the_best_scores_of_the_first_block_and_the_stretch(self, new, total):
        seen, at = view(new, total), torch.arange(total)
        query = at[-new:, None]
        near = ((at < BLOCK) | (at // 24 == query // 24)) & (at <= query)
        scores = seen.scores(seen.query, seen.keys[list(seen.kv)]).masked_fill(~near, float("-inf"))
        torch.testing.assert_close(Stripes(0.0, step=3)._anchors(seen), scores.amax(-1))

    def test_a_larger_theta_keeps_more(self):
        seen = view()
        shares = [float(Stripes(theta, 1).select(seen).density().mean()) for theta in (-100, 0, 1, 3, 100)]
        assert shares == sorted(shares)
        assert shares[-1] == 1

    def test_moba_takes_the_best_mean_keys(self):
        seen = view()
        chosen = Gated(3).select(seen).kept
        scores = torch.einsum("hqd,hkd->hqk", pooled(seen.query, BLOCK), pooled(seen.keys, BLOCK)[list(seen.kv)])
        best = scores[2, 7, :7].topk(2).indices
        assert set(chosen[2, 7].nonzero().flatten().tolist()) == {7, *best.tolist()}
        assert (chosen.sum(-1) == torch.arange(1, 9).clamp(max=3)).all()
        assert Gated(8).select(seen).density().tolist() == [1] * 4

    def test_sparge_computes_blocks_that_means_do_not_stand_for(self):
        torch.manual_seed(0)
        keys, query = torch.ones(1, 64, 16), torch.ones(1, 64, 16)
        keys[0, 24:32] = torch.randn(8, 16)
        query[0, 40:48] = torch.randn(8, 16)
        keys[0, 8:16] *= 3
        chosen = Predicted(cdf=0.9, similarity=0.5, sinks=0).select(View(query, keys, (0,), BLOCK, 1.0)).kept[0]
        assert chosen[3:, 3].all(), "keys that differ"
        assert chosen[5, :6].all(), "queries that differ"
        assert chosen[7].nonzero().flatten().tolist() == [1, 3, 7], "the block that means point at"

    def test_star_reads_stretches_with_an_anchor_and_lets_the_query_see_all(self):
        seen = view(64, 64)
        kept = TwoPhases(context=3, anchor=2, query=1).select(seen).kept[0]
        assert kept[5].nonzero().flatten().tolist() == [0, 1, 3, 4, 5]
        assert kept[1].nonzero().flatten().tolist() == [0, 1]
        assert kept[7].all()
        assert TwoPhases(8, 8, 0).select(seen).density().tolist() == [1] * 4, "one stretch is dense"
        assert TwoPhases(1, 1, 1).select(view(16, 64)).density().tolist() == [1] * 4, "what comes behind sees all"

    @pytest.mark.parametrize("name", RULES)
    def test_random_blocks_are_as_many_and_keep_the_first_and_own(self, name):
        seen = view()
        chosen, random = (
            pattern(r).select(seen) for r in (RULES[name], {"pattern": "random", "of": RULES[name], "seed": 1})
        )
        torch.testing.assert_close(random.density(), chosen.density())
        assert (random.kept.sum(-1) == chosen.kept.sum(-1)).all()
        assert random.kept[:, range(8), range(8)].all()
        assert (random.kept[..., 0] >= chosen.kept[..., 0]).all()
        if chosen.density().mean() < 0.9 and name != "moba":
            assert not torch.equal(random.to_mask(), chosen.to_mask())
        again = Random(RULES[name], 1).select(seen)
        assert torch.equal(again.to_mask(), random.to_mask())


class TestModels:
    def test_every_method_is_in_the_registry(self, model):
        assert list(methods(model)) == NAMES

    @pytest.mark.parametrize("name", NAMES)
    def test_a_budget_of_one_is_the_dense_model_bit_by_bit(self, model, name):
        plan = methods(model, budget=1.0)[name].plan(model)
        assert plan.density == 1
        true = generated(model, TOKENS)
        with plan.applied(model):
            assert torch.equal(logits(generated(model, TOKENS)), logits(true))

    @pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mistral"])
    @pytest.mark.parametrize("rule", [{"pattern": "moba", "top_k": 8}, {"pattern": "anchor", "theta": 1e3}])
    def test_everything_kept_is_the_dense_model(self, family, rule):
        model = deploy(tiny(family))
        plan = MoBA(top_k=8, length=LENGTH, block=BLOCK).plan(model)
        plan = type(plan)(**{**vars(plan), "rules": (rule,)})
        true = generated(model, TOKENS, 3)
        with plan.applied(model):
            found = generated(model, TOKENS, 3)
        assert torch.equal(found.sequences, true.sequences)
        close(logits(found), logits(true), 5e-5)

    @pytest.mark.parametrize("name", NAMES)
    def test_a_plan_changes_prefill_and_is_gone_afterwards(self, model, plans, name):
        before = model(TOKENS).logits
        with plans[name].applied(model):
            inside = model(TOKENS).logits
        assert not torch.allclose(inside, before, atol=1e-3)
        assert torch.equal(model(TOKENS).logits, before)
        assert "forward" not in vars(model)
        assert model.config._attn_implementation == "sdpa"

    @pytest.mark.parametrize("name", NAMES)
    def test_each_head_of_the_model_computes_what_its_mask_says(self, model, plans, name):
        """In the first layer, whose queries and keys are the dense model's."""
        plan, given, seen = plans[name], [], []
        observe(model, TOKENS, BLOCK, lambda view, values: seen.append((view, values)))
        handle = model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda _, args: given.append(args[0]))
        with plan.applied(model), torch.no_grad():
            model(TOKENS)
        handle.remove()
        (view, values), rules = seen[0], {head: plan.rules[index] for layer, head, index in plan.heads if layer == 0}
        for head in range(4):
            alone = replace(view, query=view.query[[head]], kv=view.kv[head : head + 1], heads=(head,))
            true = masked(alone, values, pattern(rules[head]).select(alone))[0]
            close(given[0][0].unflatten(1, (4, -1))[:, head], true)

    @pytest.mark.parametrize("name", NAMES)
    def test_what_is_kept_is_measured_head_by_head(self, model, plans, name):
        frame = kept_attention(model, plans[name], TOKENS)
        assert frame["mass"].between(0, 1 + 1e-6).all()
        np.testing.assert_allclose(frame["density"], plans[name].densities, atol=1e-6)
        full = frame[frame["density"] == 1]
        np.testing.assert_allclose(full["error"], 0, atol=1e-5)

    @pytest.mark.parametrize("name", NAMES)
    def test_tokens_do_not_see_later_ones(self, model, plans, name):
        """What depends on the last queries, as FlexPrefill's choice does, is chosen; nothing is seen."""
        if name == "flexprefill":
            pytest.skip("its choice looks at the end of the prompt; blocks are causal, see above")
        other = TOKENS.clone()
        other[:, 48:] = 4 + (other[:, 48:] + 3) % 40
        with plans[name].applied(model):
            close(model(other).logits[:, :40], model(TOKENS).logits[:, :40])

    @pytest.mark.parametrize("name", NAMES)
    def test_a_padded_batch_is_as_its_prompts_alone(self, model, plans, name):
        rows = [TOKENS[0], TOKENS[0, 7:], TOKENS[0, 33:]]
        batch = torch.stack([torch.cat([torch.full((LENGTH - len(row),), 3), row]) for row in rows])
        mask = torch.stack([torch.arange(LENGTH) >= LENGTH - len(row) for row in rows]).long()
        with plans[name].applied(model):
            found = generated(model, batch, attention_mask=mask)
            for number, row in enumerate(rows):
                alone = generated(model, row[None])
                close(logits(found, number), logits(alone), 5e-5)

    @pytest.mark.parametrize("name", ["a_shape", "moba", "flexprefill"])
    def test_chunks_worth_a_block_are_sparse_and_shorter_ones_dense(self, model, plans, name):
        plan = plans[name]
        with plan.applied(model):
            first = model(TOKENS[:, :40], use_cache=True)
        cache = cache_of(first)
        dense_cache = type(cache)(config=model.config)
        for layer in range(len(cache.layers)):
            dense_cache.update(cache.layers[layer].keys.clone(), cache.layers[layer].values.clone(), layer)
        with plan.applied(model):
            short = model(TOKENS[:, 40:44], **using(cache)).logits
        close(short, model(TOKENS[:, 40:44], **using(dense_cache)).logits)

    def test_a_prompt_in_chunks_is_read_as_in_one_go(self, model, plans):
        with plans["a_shape"].applied(model):
            whole = model(TOKENS).logits
            first = model(TOKENS[:, :37], use_cache=True)
            second = model(TOKENS[:, 37:], **using(cache_of(first)))
        close(torch.cat([first.logits, second.logits], 1), whole)

    def test_a_static_cache_works(self, model, plans):
        with plans["moba"].applied(model):
            found = generated(model, TOKENS[:, :50], **using(StaticCache(config=model.config, max_cache_len=64)))
            close(logits(found), logits(generated(model, TOKENS[:, :50])))

    def test_layers_with_a_window_of_their_own_keep_it(self):
        model = deploy(tiny("gemma3"))
        plan = AShape(budget=0.6, length=LENGTH, block=BLOCK).plan(model)
        assert {layer for layer, _, _ in plan.heads} == {1, 3}
        with pytest.raises(UsageError, match="sliding_window=4"):
            AShape(budget=0.6, length=LENGTH, block=BLOCK).plan(deploy(tiny("mistral")))

    def test_permanent_is_as_applied_and_survives_a_file(self, model, plans, tmp_path):
        for name in ("head_patterns", "anchor"):
            plan = plans[name]
            with plan.applied(model):
                inside = model(TOKENS).logits
            own = plan.made_permanent(model)
            assert torch.equal(own(TOKENS).logits, inside)
            assert not torch.equal(model(TOKENS).logits, inside)
            save(own, tmp_path / name)
            assert torch.equal(load(tmp_path / name)(TOKENS).logits, inside)
            plan.save(tmp_path / "plan.json")
            assert Plan.load(tmp_path / "plan.json") == plan


def caches(model):
    common = {"budget": 0.5, "length": LENGTH}
    return {
        "full": FullCache(length=LENGTH),
        "streaming": StreamingCache(**common),
        "snapkv": SnapKVCache(window=4, **common),
        "retrieval": RetrievalCache(retrieval=retrieval(model), sinks=2, window=4, **common),
    }


class TestWithACache:
    @pytest.mark.parametrize("cache", ["full", "streaming", "snapkv", "retrieval"])
    @pytest.mark.parametrize("name", ["a_shape", "anchor"])
    def test_both_are_in_force_in_either_order(self, model, plans, cache, name):
        sparse, kept = plans[name], caches(model)[cache].plan(model)
        results = []
        for plan in (sparse + kept, kept + sparse):
            with plan.applied(model):
                results.append(generated(model, TOKENS))
                cached = cache_of(results[-1])
        assert torch.equal(logits(results[0]), logits(results[1]))
        with kept.applied(model):
            alone = generated(model, TOKENS)
        assert cached.bytes() == cache_of(alone).bytes(), "entries are as absent as without sparse prefill"
        with sparse.applied(model):
            only = generated(model, TOKENS)
        close(logits(results[0])[0], logits(only)[0])
        assert not torch.allclose(logits(results[0])[0], logits(alone)[0], atol=1e-3), "the prompt is read sparsely"
        if cache == "full":
            close(logits(results[0]), logits(only))

    def test_a_padded_batch_is_as_its_prompts_alone(self, model, plans):
        both = plans["a_shape"] + caches(model)["streaming"].plan(model)
        batch = torch.stack([TOKENS[0], torch.cat([torch.full((9,), 3), TOKENS[0, 9:]])])
        mask = torch.stack([torch.ones(LENGTH), (torch.arange(LENGTH) >= 9).float()]).long()
        with both.applied(model):
            found = generated(model, batch, attention_mask=mask)
            close(logits(found, 1), logits(generated(model, TOKENS[:, 9:])), 5e-5)

    def test_a_cache_that_is_filled_in_chunks_is_refused(self, model, plans):
        cache = FullCache(length=LENGTH, prefill_chunk=16).plan(model)
        with pytest.raises(UsageError, match="prefill_chunk=16"), (cache + plans["moba"]).applied(model):
            pass
        with (plans["moba"] + cache).applied(model), pytest.raises(UsageError, match="prefill_chunk=16"):
            model(TOKENS)

    def test_two_plans_for_prefill_are_refused(self, model, plans):
        cache = FullCache(length=LENGTH).plan(model)
        moba, star = plans["moba"], plans["star"]
        for plan in (moba + star, moba + cache + star, cache + moba + star):
            with pytest.raises(UsageError, match="one at a time"), plan.applied(model):
                pass


class TestFindings:
    def test_the_heads_that_retrieve_most_see_everything(self, model):
        values = np.zeros((3, 4))
        values[1, 2], values[2, 0] = 0.9, 0.8
        method = HeadPatterns(retrieval=retrieval(model, values), budget=0.75, window=8, length=64, block=BLOCK)
        frame = method.plan(model).to_frame()
        seeing = frame[frame["sees"] == "everything"]
        assert {(1, 2), (2, 0)} <= set(zip(seeing["layer"], seeing["head"], strict=True))
        assert len(seeing) < 12
        plan, random, inverted = method.plan(model), method.random_plan(model, seed=3), method.inverted_plan(model)
        assert plan.density == pytest.approx(random.density) == pytest.approx(inverted.density)
        assert plan.density <= 0.75
        assert plan.findings == ("RetrievalHeads",)
        low = inverted.to_frame().query("sees == 'everything'")
        assert max(low["score"]) <= min(seeing["score"])

    def test_window_and_share_of_heads_can_be_given(self, model):
        common = {"retrieval": retrieval(model), "length": 64, "block": BLOCK}
        plan = HeadPatterns(window=8, full=0.25, **common).plan(model)
        assert (plan.to_frame()["sees"] == "everything").sum() == 3
        assert plan.budget == pytest.approx(plan.density, abs=1e-4)
        plan = HeadPatterns(full=0.25, budget=0.8, **common).plan(model)
        assert (plan.to_frame()["sees"] == "everything").sum() == 3
        assert 0.65 < plan.density <= 0.8
        with pytest.raises(UsageError, match="leave out one"):
            HeadPatterns(window=8, full=0.25, budget=0.7, **common)
        with pytest.raises(UsageError, match="the least that works"):
            HeadPatterns(full=0.5, budget=0.5, **common).plan(model)

    def test_sinks_come_from_their_finding(self, model):
        few, many = (AShape(window=8, sinks=sinks(model, n), length=64, block=BLOCK).plan(model) for n in (2, 9))
        assert few.rules[0]["sinks"] == 2
        assert many.rules[0]["sinks"] == 9

    @pytest.mark.parametrize("name", NAMES)
    def test_budgets_are_kept_and_random_plans_are_as_dense(self, model, plans, name):
        method = methods(model)[name]
        assert plans[name].density <= 0.75 + 1e-6
        random = method.random_plan(model, seed=1)
        assert random.density == pytest.approx(plans[name].density)
        assert random.method == f"{plans[name].method}, random"
        with random.applied(model):
            generated(model, TOKENS, 2)

    def test_without_a_budget_the_measured_density_is_the_plans(self, model):
        for method in (
            FlexPrefill(gamma=0.5, least=0, source=TOKENS, length=LENGTH, block=BLOCK),
            MoBA(top_k=2, block=8),
        ):
            plan = method.plan(model)
            assert plan.budget == pytest.approx(plan.density, abs=1e-4)

    @pytest.mark.parametrize("name", NAMES)
    def test_the_ledger_counts_what_is_not_computed(self, model, plans, name):
        ledger = plans[name].ledger(model, LENGTH)
        attention = 4 * 8 * 4 * 3 * LENGTH * (LENGTH + 1) / 2
        saved = ledger.prefill_flops.before - ledger.prefill_flops.after
        assert saved <= attention * (1 - plans[name].density) + 1
        if name in ("a_shape", "head_patterns", "star"):
            assert saved == pytest.approx(attention * (1 - plans[name].density))
        assert ledger.decode_flops.share == ledger.cache_bytes.share == ledger.weight_bytes.share == 1
        assert len(plans[name].figure().data) == 1

    @torch.no_grad()
    def test_losses_are_the_models(self, model):
        logits = model(TOKENS).logits[0]
        true = torch.nn.functional.cross_entropy(logits[9:-1], TOKENS[0, 10:])
        assert text_loss(model, TOKENS, skip=9) == pytest.approx(float(true), rel=1e-5)


class TestErrors:
    def test_a_budget_too_small_says_the_least_that_works(self, model):
        for name in ("a_shape", "head_patterns", "moba", "star", "sparge", "flexprefill", "anchor"):
            with pytest.raises(UsageError, match="the least that works is") as caught:
                methods(model, budget=0.05)[name].plan(model)
            least = float(str(caught.value).rsplit(" ", 1)[1])
            assert methods(model, budget=min(least + 1e-3, 1.0))[name].plan(model).density <= least + 1e-3

    def test_bad_requests_are_refused(self, model):
        with pytest.raises(UsageError, match="length=65 is more than the 64 tokens"):
            AShape(budget=0.5, length=65, block=BLOCK).plan(model)
        with pytest.raises(UsageError, match="interp retrieval-heads"):
            make("head_patterns", budget=0.5)
        with pytest.raises(UsageError, match="both given"):
            MoBA(budget=0.5, top_k=3)
        for options in ({"budget": 0}, {"budget": 1.5}, {"block": 0}, {"window": 0}, {"backend": "triton"}):
            with pytest.raises(UsageError):
                AShape(**options)
        other = retrieval(deploy(tiny("llama", seed=1)))
        with pytest.raises(UsageError, match="fingerprint"):
            HeadPatterns(retrieval=other, budget=0.6, length=LENGTH, block=BLOCK).plan(model)
        with pytest.raises(UsageError, match="step"):
            AnchorAttention(step=0)

    def test_a_mask_of_another_shape_is_refused(self, model, plans):
        with plans["moba"].applied(model), pytest.raises(UsageError, match="row pos"):
            model(TOKENS, attention_mask=torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool))
