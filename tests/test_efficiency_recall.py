"""Recall under many plans from one reading of each prompt is what each plan's own reading gives."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from families import tiny
from test_efficiency_kv_cache import methods

from interp.efficiency import deploy
from interp.efficiency.kv_cache.prefilled import Prefilled
from interp.efficiency.quality import Keys
from interp.efficiency.recall import recall
from interp.errors import UsageError
from interp.tasks.keys import KeySample


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def model(request):
    return deploy(tiny(request.param))


def samples(n=5):
    draw = torch.Generator().manual_seed(0)

    def some(size):
        return tuple(torch.randint(4, 50, (size,), generator=draw).tolist())

    return [KeySample(some(30 + at % 2), some(6), some(3), some(6), "thing", "123", 1, ((3, 6),)) for at in range(n)]


def test_recall_is_what_keys_measures_plan_by_plan(model):
    made = methods(model, budget=0.5, length=30)
    plans = {name: made[name].plan(model) for name in ("streaming", "retrieval", "h2o", "snapkv", "attendre")}
    given = samples()
    found = recall(model, plans, given, at_once=2)
    assert list(found["plan"].unique()) == ["dense", *plans]
    keys = Keys(1, 40, len(given))
    keys.samples = given
    for name in ("dense", *plans):
        with plans[name].applied(model) if name in plans else nullcontext():
            keys.measure(model)
        mine = found[found["plan"] == name]
        assert mine["prompt"].tolist() == list(range(len(given)))
        assert mine["recall"].tolist() == [one["recall"] for one in keys.each]
        assert mine["answer_loss"].tolist() == pytest.approx([one["answer_loss"] for one in keys.each], abs=1e-4)
    lost = found.pivot(index="prompt", columns="plan", values="answer_loss").sub(
        found[found["plan"] == "dense"].set_index("prompt")["answer_loss"], axis=0
    )
    assert (lost[list(plans)].abs() > 1e-3).all(None)  # all of them drop something


def test_one_reading_serves_any_number_of_caches(model):
    plan = methods(model, budget=0.5, length=30)["h2o"].plan(model)
    read = Prefilled(model, torch.tensor([samples(1)[0].context]))
    first, second = (read.cache(plan, model) for _ in range(2))
    assert first.seen == read.length
    for one, other in zip(first.tensors(), second.tensors(), strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()


def test_plans_that_read_in_chunks_are_refused_by_name(model):
    plan = methods(model, budget=0.5, length=30, prefill_chunk=8)["h2o"].plan(model)
    with pytest.raises(UsageError, match="h2o reads prompts in chunks"):
        recall(model, {"h2o": plan}, samples(1))
