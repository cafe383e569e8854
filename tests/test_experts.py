"""Mixtures of experts: what has no meaning in them is refused in words, experts are numbered and cut as they say."""

from __future__ import annotations

import pytest
import torch
from families import tiny
from prompts import random_task

from interp.efficiency import Plan, deploy, deployment
from interp.efficiency.pruning import PruningPlan
from interp.engine import run, verified
from interp.engine.forward import Walk
from interp.engine.rules import RELP, Rules
from interp.errors import UsageError
from interp.graph import Graph, Node
from interp.patching import activation, attribution, intervene
from interp.patching.atp_star import key_effects
from interp.relevance import neuron_relevance

pytestmark = pytest.mark.filterwarnings("ignore:the model does not perform")
TOKENS = torch.randint(5, 50, (2, 11), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model():
    return tiny("qwen2-moe")


@torch.no_grad()
@pytest.mark.parametrize("family", ["mixtral", "qwen2-moe", "gpt-oss"])
def test_what_experts_write_adds_up_to_the_mlp_and_few_are_chosen(family):
    bridge = tiny(family)
    parts = verified(bridge)
    kept, _ = run(parts, TOKENS, {"expert", "router", "mlp_out"})
    for layer in range(parts.graph.n_layers):
        writes, weights = kept["expert", layer], kept["router", layer]
        torch.testing.assert_close(writes.sum(2), kept["mlp_out", layer], atol=1e-5, rtol=1e-5)
        assert ((weights[..., :4] > 0).sum(-1) == 2).all()
        assert (writes[weights == 0] == 0).all()
        assert weights.shape[-1] == parts.graph.n_experts == (5 if family == "qwen2-moe" else 4)


def test_a_shared_expert_is_the_last_one(model):
    task = random_task(n=2)
    effect = intervene(model, task, {"m1.e4": lambda x: 0 * x}, on="corrupted").values.item()
    gate = model.blocks[1].mlp.original_component.shared_expert_gate
    gate = getattr(gate, "original_component", gate)
    with torch.no_grad():
        base = task.metric(model(task.corrupted))
        handle = gate.register_forward_hook(lambda module, args, out: torch.full_like(out, -torch.inf))
        try:
            wanted = task.metric(model(task.corrupted)) - base
        finally:
            handle.remove()
    assert effect == pytest.approx(float(wanted), abs=1e-4)
    assert abs(effect) > 1e-3


def test_relp_holds_the_router_and_the_gradient_does_not(model):
    task = random_task(n=2)
    assert RELP.holds_router
    assert not Rules().holds_router
    assert str(RELP) == "norm=constant, activation=identity, gate=half"
    held = attribution(model, task, "heads", rules="relp")
    told = attribution(
        model, task, "heads", rules=Rules(norm="constant", activation="identity", gate="half", router="constant")
    )
    free = attribution(
        model, task, "heads", rules=Rules(norm="constant", activation="identity", gate="half", router="gradient")
    )
    assert held.equals(told) or abs(held.values - told.values).max() < 1e-6
    assert abs(held.values - free.values).max() > 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model, task: activation(model, task, "neurons", indices=[0]), "neurons are inside experts"),
        (lambda model, task: attribution(model, task, "heads", rules="secant"), "different experts"),
        (lambda model, task: neuron_relevance(model, TOKENS, n=2, length=11), "neurons are inside experts"),
        (lambda model, task: activation(model, task, "experts", indices=[5]), r"expert 5 is out of range"),
        (lambda model, task: Graph.of(model).hook("router", 0), "TransformerLens has no hook at router"),
        (lambda model, task: Graph.of(model).check(Node("post", 0)), "neurons are inside experts"),
        (lambda model, task: verified(model).blocks[1].down.weight, "MLP of block 1 is a mixture of experts"),
    ],
)
def test_what_has_no_meaning_in_a_mixture_is_refused(model, call, message):
    with pytest.raises(UsageError, match=message):
        call(model, random_task(n=1))


def test_a_dense_model_has_no_experts():
    with pytest.raises(UsageError, match="no mixtures of experts"):
        activation(tiny("llama"), random_task(n=1), "experts")


@torch.no_grad()
def test_the_effect_of_a_patched_key_knows_the_share_of_a_learned_sink():
    parts = verified(tiny("gpt-oss"))
    walk, block = Walk(parts, 7), parts.blocks[1]
    queries, keys, patched, gradient = (
        torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
        for seed, shape in enumerate([(2, 7, 4, 8), (2, 7, 2, 8), (2, 7, 2, 8), (2, 4, 7, 7)])
    )
    before = walk._pattern(block, queries, keys, 0)
    assert (before.sum(-1) < 0.999).any()
    wanted = torch.empty(2, 4, 7)
    for key in range(7):
        changed = keys.clone()
        changed[:, key] = patched[:, key]
        wanted[..., key] = ((walk._pattern(block, queries, changed, 0) - before) * gradient).sum((2, 3))
    found = key_effects(walk, block, queries, keys, patched, gradient, 0)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_experts_are_taken_out_by_original_numbers_and_put_back(model, tmp_path):
    hf = deploy(model)
    about = {"model": deployment(hf).name, "fingerprint": deployment(hf).fingerprint}

    def plan(*experts):
        return PruningPlan(**about, method="by hand", budget=0.5, experts=experts)

    before, weights = hf(TOKENS).logits, {name: x.clone() for name, x in hf.state_dict().items()}
    with plan((1, (0, 3))).applied(hf):
        together = hf(TOKENS).logits
    with plan((1, (0,))).applied(hf), plan((1, (3,))).applied(hf):
        assert torch.equal(hf(TOKENS).logits, together)
    assert torch.equal(hf(TOKENS).logits, before)
    assert all(torch.equal(weights[name], x) for name, x in hf.state_dict().items())
    plan((1, (0, 3))).save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan((1, (0, 3)))
    assert plan((1, (0, 3))).ledger(hf, 8).weight_bytes.share < 1
    with plan((0, (4,))).applied(hf):  # the shared one
        assert not torch.equal(hf(TOKENS).logits, before)
    for experts, message in (((0, (0, 1, 2, 3)), "would keep no expert"), ((0, (5,)), "none with the number 5")):
        with pytest.raises(UsageError, match=message), plan(experts).applied(hf):
            pass
    dense = deploy(tiny("llama"))
    about |= {"model": deployment(dense).name, "fingerprint": deployment(dense).fingerprint}
    with pytest.raises(UsageError, match="LlamaMLP of layer 0 is no mixture"), plan((0, (1,))).applied(dense):
        pass
