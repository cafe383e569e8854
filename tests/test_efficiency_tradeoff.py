"""Trade-offs: what is measured is what it says, on all rows, and pictures and files carry it."""

from __future__ import annotations

import json

import pytest
import torch
from families import tiny
from test_efficiency_plans import Narrower

import interp
from interp.efficiency import Composed, deploy, deployment, registry
from interp.efficiency.cost import Cost
from interp.efficiency.decoding import Decoder, storage_bytes
from interp.efficiency.quality import Keys, Quality, Tasks, Text
from interp.efficiency.tradeoff import tradeoff
from interp.errors import UsageError

TOKENS = torch.arange(60).reshape(2, 30) % 17 + 1


class Shrink:
    """A method: keeps a share of a layer's neurons."""

    def __init__(self, budget):
        self.budget = budget

    def _keep(self, model, keep):
        found = deployment(model)
        return Narrower(
            model=found.name, fingerprint=found.fingerprint, method="shrink", budget=self.budget, keep=tuple(keep)
        )

    def plan(self, model):
        return self._keep(model, range(4))

    def random_plan(self, model, seed):
        return self._keep(model, [seed, seed + 5])

    def inverted_plan(self, model):
        return self._keep(model, range(4, 8))


class Simulated(Narrower):
    real = False


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    monkeypatch.setattr(registry, "_named", lambda place: Composed if "Composed" in place else Narrower)


@pytest.fixture
def model():
    return deploy(tiny("llama"))


def small(model):
    return Text(TOKENS, n=2, length=30, scored=10, piece=3), Cost(16, 3, source=TOKENS, peak=False)


def test_text_through_the_cache_gives_the_loss_of_one_pass(model):
    text, _ = small(model)
    text.prepare(model)
    found = text.measure(model)
    logits = model(TOKENS).logits[:, 19:29]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), TOKENS[:, 20:].flatten())
    assert found["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    assert found["kl"] == pytest.approx(0, abs=1e-6)
    assert found["agreement"] == 1


def test_every_quality_says_on_which_split_it_is_measured():
    assert Text().about()["split"] == Keys().about()["split"] == "score"
    task = interp.task("induction", interp.load("toy-induction", device="cpu"), n=4, split="score")
    assert Tasks(task).about() == {"induction": {"n": 4, "seed": 0, "split": "score"}}


def test_bytes_are_those_of_the_storages_counted_once(model):
    decoder = Decoder(model)
    decoder.feed(TOKENS[:1])
    config = model.config
    width = config.num_key_value_heads * config.head_dim
    assert storage_bytes(decoder.cache) == 2 * config.num_hidden_layers * 30 * width * 4
    x = torch.zeros(100)
    assert storage_bytes([x, x[:3], {"again": x}]) == 400
    weights = {weight.data_ptr(): weight.numel() * 4 for weight in model.parameters()}
    assert storage_bytes(model) >= sum(weights.values())


def test_all_rows_are_measured_in_one_run_beside_their_controls(model, tmp_path):
    text, cost = small(model)
    found = tradeoff(model, {"a": Shrink(0.5), "b": Shrink(0.4)._keep(model, [0])}, [text], cost, repetitions=2)
    frame = found.to_frame()
    assert list(frame.index) == ["dense", "dense, static cache", "a", "a, random", "a, inverted", "b"]
    assert list(frame["kind"]) == ["dense", "dense", "plan", "random", "inverted", "plan"]
    assert [row.plan and row.plan.keep for row in found.rows] == [None, None, (0, 1, 2, 3), (0, 5), (4, 5, 6, 7), (0,)]
    assert frame.loc["a", "control"] == "random, inverted"
    assert frame.loc["b", "control"] == "none, because it does not say how it was made"
    assert frame.loc["dense", "text.kl"] == pytest.approx(0, abs=1e-6)
    assert (frame.loc[["a", "b"], "text.kl"] > 1e-6).all()
    assert frame.loc["b", "weight_bytes"] < frame.loc["a", "weight_bytes"] < frame.loc["dense", "weight_bytes"]
    assert (found.spread().loc["a"]["repetitions"] == 2).all()
    front = found.pareto("text.kl", "weight_bytes")
    assert front[0] == "b"
    assert front[-1] == "dense"
    found.save(tmp_path, "text.kl", "weight_bytes")
    stored = json.loads((tmp_path / "tradeoff.json").read_text())
    assert {row["row"] for row in stored["rows"]} == set(frame.index)
    assert stored["about"]["ledgers"]["b"][0]["after"] == 40
    assert stored["about"]["quality"]["text"]["split"] is None  # token ids of one's own are not split
    assert stored["about"]["quality"]["text"]["source"] == "given texts"
    assert "<html" in (tmp_path / "tradeoff.html").read_text()[:200].lower()
    assert (tmp_path / "tradeoff.png").stat().st_size > 5000
    shown = found.picture("text.kl", "weight_bytes").draw()._repr_png_()  # what a notebook shows of it
    assert len(shown) > 5000
    assert (tmp_path / "tradeoff.csv").read_text().startswith("row,kind,of,budget,simulated,")


def test_simulated_plans_have_no_seconds(model):
    text, cost = small(model)
    found = deployment(model)
    plan = Simulated(model=found.name, fingerprint=found.fingerprint, method="zeros", budget=0.5, keep=(0, 1))
    frame = tradeoff(model, [plan], [text], cost, repetitions=1).to_frame()
    assert frame.loc["zeros", "simulated"]
    assert frame.loc["zeros", ["prefill_seconds", "decode_seconds"]].isna().all()
    assert frame.loc["dense", ["prefill_seconds", "decode_seconds"]].notna().all()


def test_a_peak_counts_what_is_allocated_at_once(model):
    cost = Cost(16, 1, source=TOKENS)
    cost.prepare(model)
    peak = cost.peak_bytes(model)
    assert peak > 4 * 15 * model.config.hidden_size


@pytest.mark.real_model
def test_smollm2_finds_a_key_that_it_cannot_guess(smollm2):
    model = deploy(smollm2)
    keys = Keys(1, 160, 3)
    keys.prepare(model)
    found = keys.measure(model)
    assert found["recall"] >= 2 / 3
    assert found["guess_loss"] > found["answer_loss"] + 1


def test_bad_requests_are_refused(model):
    text, cost = small(model)
    with pytest.raises(UsageError, match="two plans have one name"):
        tradeoff(model, [Shrink(0.5), Shrink(0.5)], [text], cost)
    with pytest.raises(UsageError, match="give plans or methods"):
        tradeoff(model, [3], [text], cost)
    with pytest.raises(UsageError, match="repetitions and draws must be at least 1"):
        tradeoff(model, [], [text], cost, repetitions=0)
    with pytest.raises(UsageError, match="can be scored in pieces"):
        Text(length=10, scored=10)
    found = tradeoff(model, [], [text], cost, repetitions=1)
    with pytest.raises(UsageError, match=r"no quantity 'keys1\.recall' was measured"):
        found.pareto("keys1.recall")
    assert issubclass(Tasks, Quality)
