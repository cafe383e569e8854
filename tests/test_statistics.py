"""Statistics of what enters linear layers: against sums over recorded activations, with sinks and without."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import tiny

import interp
from interp.errors import UsageError
from interp.results import scores
from interp.results.findings import SinkPositions
from interp.statistics import INPUTS, activation_statistics

TOKENS = torch.randint(0, 50, (5, 12), generator=torch.Generator().manual_seed(0))
LAYERS = {"qkv": "self_attn.q_proj", "o": "self_attn.o_proj", "mlp": "mlp.up_proj", "down": "mlp.down_proj"}


def entered(model, name):
    """What enters one kind of layer, "layer text pos channel", by hooks on the deployed model."""
    kept, handles = [], []
    for block in model.model.layers:
        module = block.get_submodule(LAYERS[name])
        handles.append(module.register_forward_pre_hook(lambda _, args: kept.append(args[0].detach())))
    model(TOKENS)
    for handle in handles:
        handle.remove()
    return torch.stack(kept).abs()


@pytest.mark.parametrize("name", INPUTS)
def test_statistics_are_those_of_what_enters_the_layers(name):
    bridge = tiny("llama")
    found = activation_statistics(bridge, TOKENS, 5, 12)
    x = entered(interp.deploy(bridge), name)
    for sinks, kept in ((True, x.flatten(1, 2)), (False, x[:, :, 1:].flatten(1, 2))):
        for metric, expected in (("mean", kept.mean(1)), ("square", kept.square().mean(1)), ("max", kept.amax(1))):
            values = torch.from_numpy(found.of(name, metric, sinks=sinks).values)
            torch.testing.assert_close(values, expected, atol=1e-5, rtol=1e-4)


def test_sinks_are_left_out_where_a_finding_says_so():
    bridge = tiny("llama")
    fingerprint = interp.models.fingerprint(bridge)
    attention = scores(np.zeros((3, 4)), ("layer", "position"), {}, name="attention")
    where = SinkPositions(
        model="tiny", fingerprint=fingerprint, positions=(0, 3), tokens=(7,), evidence={"attention": attention}
    )
    found = activation_statistics(bridge, TOKENS, 5, 12, sinks=where)
    left = torch.ones_like(TOKENS, dtype=torch.bool)
    left[:, [0, 3]] = False
    left &= TOKENS != 7
    expected = entered(interp.deploy(bridge), "down")[:, left].mean(1)
    torch.testing.assert_close(torch.from_numpy(found.of("down").values), expected, atol=1e-5, rtol=1e-4)
    assert found.positions == (0, 3)
    assert found.tokens == (7,)


def test_a_finding_is_saved_and_says_where_sinks_are_largest(tmp_path):
    bridge = tiny("gpt2")
    found = activation_statistics(bridge, TOKENS, 5, 12)
    found.save(tmp_path / "statistics")
    again = interp.results.load(tmp_path / "statistics")
    assert again.summary() == found.summary()
    frame = found.to_frame()
    assert len(frame) == 4 * 3
    assert (frame["ratio"].diff().dropna() <= 0).all()
    assert (frame["max"] >= frame["max without sinks"]).all()


def test_bad_requests_are_refused():
    bridge = tiny("llama")
    found = activation_statistics(bridge, TOKENS, 5, 12)
    with pytest.raises(UsageError, match="unknown inputs 'keys'"):
        found.of("keys")
    with pytest.raises(UsageError, match="unknown metric 'median'"):
        found.of("down", "median")
    with pytest.raises(UsageError, match="n of at least 1"):
        activation_statistics(bridge, TOKENS, 0, 12)
