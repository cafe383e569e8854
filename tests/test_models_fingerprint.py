"""A fingerprint tells weights apart up to precision, to the last element, and nothing else."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from families import tiny

import interp
from interp.engine import identity as module
from interp.engine.identity import exactly, identity
from interp.models import fingerprint, load
from interp.models._fingerprint import digest
from interp.results.findings import SinkPositions


@pytest.fixture
def model():
    return load("toy-induction-trained", device="cpu")


def test_one_changed_element_of_any_tensor_changes_it(model):
    before = fingerprint(model)
    assert len(before) >= 16
    assert int(before, 16)
    seen = {before}
    for _, weight in model.named_parameters():
        with torch.no_grad():
            flat = weight.view(-1)
            kept = flat[-1].item()
            flat[-1] = 1.02 * kept + 1e-3  # above the rounding to bfloat16
            seen.add(fingerprint(model))
            flat[-1] = kept
    assert len(seen) == 1 + len(list(model.parameters()))
    assert fingerprint(model) == before


def test_two_tensors_of_one_shape_swapped_change_it(model):
    before = fingerprint(model)
    first, second = (block.original_component.input_layernorm.weight for block in model.blocks)
    with torch.no_grad():
        kept = first.clone()
        first.copy_(second)
        second.copy_(kept)
    assert fingerprint(model) != before


def test_config_that_changes_the_computation_changes_it(model):
    before = fingerprint(model)
    model.cfg.eps *= 2
    assert fingerprint(model) != before


def test_same_in_another_process_thread_and_after_runs(model):
    before = fingerprint(model)
    model(torch.tensor([[0, 5, 6]]))
    with ThreadPoolExecutor(2) as pool:
        assert set(pool.map(fingerprint, [model, model])) == {before}
    program = (
        "from interp.models import fingerprint, load; print(fingerprint(load('toy-induction-trained', device='cpu')))"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == before


def test_it_holds_up_to_precision(model):
    """Loading in bfloat16 rounds as the fingerprint does, so a finding made in float32 is this model's too."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + 1e-6)
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert not all(torch.equal(a.float(), b) for a, b in zip(half.parameters(), model.parameters(), strict=True))
    assert fingerprint(half) == fingerprint(model)
    with torch.no_grad():
        next(half.parameters()).view(-1)[0].mul_(1.01)
    assert fingerprint(half) != fingerprint(model)


def test_checkpoints_tell_weights_apart_to_the_last_bit(model):
    before, exact = fingerprint(model), exactly(model)
    assert exactly(model) == exact
    with torch.no_grad():
        weight = next(model.parameters()).view(-1)
        weight[5] = torch.nextafter(weight[5], torch.tensor(9.0))
    assert fingerprint(model) == before
    assert exactly(model) != exact


def changed_in_place(weight, owner, name):
    with torch.no_grad():
        weight.view(-1)[1] += 0.5


def changed_through_data(weight, owner, name):
    weight.data.mul_(1.5)


def exchanged(weight, owner, name):
    setattr(owner, name, torch.nn.Parameter(weight.detach() * 1.5))


def exchanged_where_the_old_one_lay(weight, owner, name):
    """The storage is used again, and torch's count begins at 0 again."""
    kept = weight.data
    kept.mul_(-1)
    setattr(owner, name, torch.nn.Parameter(kept))


@pytest.mark.parametrize("change", [changed_in_place, changed_through_data, exchanged, exchanged_where_the_old_one_lay])
def test_a_changed_weight_is_noticed_and_only_it_is_read_anew(model, change, monkeypatch):
    read = []
    monkeypatch.setattr(module, "digest", lambda weight: read.append(tuple(weight.shape)) or digest(weight))
    before = identity(model)
    assert before == fingerprint(model)
    assert len(read) == len(list(model.parameters()))
    read.clear()
    assert identity(model) == before
    assert not read
    path, weight = [*model.named_parameters()][3]
    owner, _, name = path.rpartition(".")
    change(weight, model.get_submodule(owner), name)
    after = identity(model)
    assert after == fingerprint(model) != before
    assert read == [tuple(weight.shape)]


def test_one_element_written_behind_torchs_back_is_found_when_something_is_saved(tmp_path):
    model = tiny("llama")
    weight = max(model.parameters(), key=torch.Tensor.numel)
    assert weight.numel() > 1000
    before = identity(model)
    scores = interp.results.scores(torch.zeros(2, 2).numpy(), ("layer", "head"), units="logits", fingerprint=before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interp.results.save(scores, tmp_path / "before.safetensors")
    weight.data.view(-1)[1] += 0.5
    assert identity(model) == before  # not among the values that are looked at
    with pytest.warns(UserWarning, match=r"changed through \.data after the fingerprint"):
        interp.results.save(scores, tmp_path / "after.safetensors")
    assert interp.results.load(tmp_path / "after.safetensors").equals(scores)
    assert identity(model) == fingerprint(model) != before


def test_a_finding_in_float32_makes_a_plan_for_the_model_in_bfloat16(tmp_path):
    model = tiny("llama")
    half = copy.deepcopy(model).to(torch.bfloat16)
    attention = interp.results.scores(torch.zeros(3, 64).numpy(), ("layer", "position"), units="attention")
    about = {"model": str(model.cfg.model_name), "fingerprint": identity(model)}
    sinks = SinkPositions(**about, evidence={"attention": attention}, positions=(0,))
    interp.results.save(sinks, tmp_path / "sinks")
    hf = interp.deploy(half)
    method = interp.efficiency.make("streaming", [interp.results.load(tmp_path / "sinks", half)], budget=0.5, length=32)
    plan = method.plan(hf)
    plan.save(tmp_path / "plan.json")
    tokens = torch.arange(1, 33)[None] % 40
    for there in (hf, interp.deploy(model)):
        with interp.results.load(tmp_path / "plan.json").applied(there):
            assert there.generate(tokens, max_new_tokens=3, do_sample=False).shape == (1, 35)
