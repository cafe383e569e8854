"""Deployed models, and what all plans do: applied and undone, composed, made permanent, saved, refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import ClassVar

import pandas as pd
import plotly.graph_objects as go
import pytest
import torch
from families import FAMILIES, tiny

import interp
from interp.efficiency import Amount, Composed, Ledger, Plan, deploy, deployment, registry
from interp.errors import InterpError, UsageError


@dataclass(frozen=True, kw_only=True)
class Narrower(Plan):
    """Keeps some of a layer's last neurons; what a plan is, in its smallest form."""

    keep: tuple[int, ...]
    kind: ClassVar[str] = "narrower"

    def change(self, model, undo):
        mlp = model.model.layers[0].mlp
        index = torch.tensor(self.keep)
        for name in ("gate_proj", "up_proj", "down_proj"):
            owner = getattr(mlp, name)
            dim = 1 if name == "down_proj" else 0
            at = index.to(owner.weight.device)
            undo.set(owner, "weight", torch.nn.Parameter(owner.weight.detach().index_select(dim, at)))

    def ledger(self, model, length, batch=1):
        same = Amount(10, 10)
        return Ledger(Amount(100, 100 * self.budget), same, same, same, length, batch)

    def to_frame(self):
        return pd.DataFrame({"kept": self.keep})

    def figure(self):
        return go.Figure()


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    monkeypatch.setitem(registry.PLANS, "narrower", f"{__name__}:Narrower")
    monkeypatch.setattr(registry, "_named", lambda place: Composed if "Composed" in place else Narrower)


@pytest.fixture
def model():
    return deploy(tiny("llama"))


def plan_for(model, keep=(0, 2, 3), budget=0.5):
    found = deployment(model)
    return Narrower(model=found.name, fingerprint=found.fingerprint, method="narrow", budget=budget, keep=keep)


TOKENS = torch.tensor([[1, 5, 9, 2, 7]])


def state(model):
    return {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_deployed_model_computes_what_the_bridge_computes_with_the_same_weights(family):
    bridge = tiny(family)
    model = deploy(bridge)
    torch.testing.assert_close(model(TOKENS).logits, bridge(TOKENS), atol=1e-5, rtol=1e-4)
    theirs = {weight.data_ptr() for weight in bridge.parameters()}
    assert {weight.data_ptr() for weight in model.parameters()} <= theirs
    assert deployment(model).fingerprint == interp.models.fingerprint(bridge)


def test_deploying_leaves_the_bridge_as_it_was():
    bridge = tiny("llama")
    before = bridge(TOKENS)
    deploy(bridge)
    assert torch.equal(bridge(TOKENS), before)
    assert all(weight.requires_grad for weight in bridge.parameters())


def interrupted(model, clean):
    with plan_for(model).applied(model):
        assert not torch.equal(model(TOKENS).logits, clean)
        assert len(deployment(model).plans) == 1
        raise RuntimeError("in between")


def test_a_plan_is_undone_whatever_is_raised(model):
    before, clean = state(model), model(TOKENS).logits
    with pytest.raises(RuntimeError, match="in between"):
        interrupted(model, clean)
    after = state(model)
    assert {name: at for name, (at, _) in after.items()} == {name: at for name, (at, _) in before.items()}
    assert all(torch.equal(after[name][1], before[name][1]) for name in before)
    assert torch.equal(model(TOKENS).logits, clean)
    assert deployment(model).plans == []


def test_plans_compose_in_order(model):
    both = plan_for(model, (0, 2, 3, 5)) + plan_for(model, (1, 2))
    with both.applied(model):
        composed = model(TOKENS).logits
        assert model.model.layers[0].mlp.up_proj.weight.shape[0] == 2
    with plan_for(model, (2, 3)).applied(model):
        assert torch.equal(model(TOKENS).logits, composed)
    assert both.ledger(model, 8).weight_bytes.share == 0.25
    assert list(both.to_frame()["kept"]) == [0, 2, 3, 5, 1, 2]


def test_made_permanent_equals_applied_and_leaves_the_model_alone(model):
    plan, before = plan_for(model), model(TOKENS).logits
    with plan.applied(model):
        applied = model(TOKENS).logits
    own = plan.made_permanent(model)
    assert torch.equal(own(TOKENS).logits, applied)
    assert torch.equal(model(TOKENS).logits, before)
    assert own.model.layers[1].mlp.up_proj.weight.data_ptr() == model.model.layers[1].mlp.up_proj.weight.data_ptr()


@pytest.mark.parametrize("composed", [False, True])
def test_a_permanent_model_loads_on_its_own_and_generates_the_same(model, composed, tmp_path):
    plan = plan_for(model, (0, 2, 3, 5)) + plan_for(model, (1, 2)) if composed else plan_for(model)
    own = plan.made_permanent(model)
    interp.efficiency.save(own, tmp_path)
    again = interp.efficiency.load(tmp_path)
    assert torch.equal(again(TOKENS).logits, own(TOKENS).logits)
    generated = [m.generate(TOKENS, max_new_tokens=6, do_sample=False) for m in (own, again)]
    assert torch.equal(*generated)
    assert deployment(again).plans == [plan]
    assert (tmp_path / "model.safetensors").stat().st_size < 4 * sum(p.numel() for p in model.parameters()) + 20_000


def test_a_plan_reads_back_as_it_was(model, tmp_path):
    both = plan_for(model) + plan_for(model, (1, 2))
    for number, plan in enumerate((plan_for(model), both)):
        plan.save(tmp_path / f"{number}.json")
        assert Plan.load(tmp_path / f"{number}.json") == plan


def test_bad_plans_and_models_are_refused_with_one_message(model, tmp_path):
    other = deploy(tiny("llama", seed=1)) if "seed" in tiny.__code__.co_varnames else deploy(tiny("gpt2"))
    with pytest.raises(UsageError, match="make the plan for this model"), plan_for(model).applied(other):
        pass
    with pytest.raises(UsageError, match=r"make one with interp\.deploy"), plan_for(model).applied(tiny("llama")):
        pass
    with pytest.raises(UsageError, match="deploy takes a TransformerBridge"):
        deploy(model)
    with pytest.raises(UsageError, match="can't be composed"):
        plan_for(model) + plan_for(other)
    with pytest.raises(InterpError, match="there is no file"):
        Plan.load(tmp_path / "none.json")
    stored = plan_for(model).to_dict()
    for name, value, message in (
        ("version", 9, "make the plan again"),
        ("keep_all", 1, "has no 'keep_all'"),
    ):
        (tmp_path / "p.json").write_text(json.dumps({**stored, name: value}))
        with pytest.raises(UsageError, match=message):
            Plan.load(tmp_path / "p.json")
    with pytest.raises(UsageError, match="unknown kind of plan 'none'"):
        Plan.from_dict({**stored, "kind": "none"})
    with pytest.raises(InterpError, match=r"there is no file .*plans\.json"):
        interp.efficiency.load(tmp_path / "nowhere")
