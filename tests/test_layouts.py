"""Unusual layouts, against plain transformers: what is computed on them is right, or they are refused by name."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf
from families import _GQA, _LLAMA, _SIZES, VOCABULARY, boot

from interp.efficiency import deploy
from interp.efficiency.pruning import MagnitudePruning
from interp.engine import Walk, verified
from interp.engine.forward import Visitor
from interp.errors import UsageError

TOKENS = torch.randint(4, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))
_TWO = {**_LLAMA, "num_hidden_layers": 3}
_GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
_MAMBA = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
_NEO = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4, "window_size": 4}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LAYOUTS = {
    "gpt2": ("GPT2", _GPT),
    "gptbigcode": ("GPTBigCode", _GPT),
    "gptj": ("GPTJ", {**_GPT, "rotary_dim": 4}),
    "gptneo": ("GPTNeo", {**_SIZES, **_NEO, "attention_types": [[["global", "local"], 1]]}),
    "gptoss": ("GptOss", {**_GQA, **_EXPERTS, "head_dim": 8, "sliding_window": 8}),
    "mamba": ("Mamba", _MAMBA),
    "olmo": ("Olmo", _TWO),
    "olmo2": ("Olmo2", _TWO),
    "phi": ("Phi", _TWO),
    "phi3": ("Phi3", {**_GQA, "pad_token_id": 0}),
    "starcoder2": ("Starcoder2", _GQA),
    "mixtral": ("Mixtral", {**_GQA, "num_local_experts": 2}),
    "nemotron": ("Nemotron", _GQA),
    "apertus": ("Apertus", {**_GQA, "pad_token_id": 0}),
    "bitnet": ("BitNet", {**_GQA, "pad_token_id": 0}),
    "falcon": (
        "Falcon",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
    "lfm2": ("Lfm2", {**_GQA, "layer_types": ["conv", "full_attention", "conv"]}),
    "mpt": ("Mpt", {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
}
REFUSED = {
    ("gptoss", "neuron"): "GptOssMLP .*no maps that are known",
    ("mamba", "heads"): "MambaConfig says no num_attention_heads",
    ("mamba", "neuron"): "MambaConfig says no num_attention_heads",
    ("mamba", "block"): "MambaConfig says no num_attention_heads",
    ("olmo2", "heads"): "Olmo2Attention .*q_norm and k_norm are over all heads together",
    ("mixtral", "neuron"): "MixtralSparseMoeBlock .*no maps that are known",
    ("bitnet", "heads"): r"BitNetAttention .*attn_sub_norm.weight of shape \[32\]",
    ("bitnet", "neuron"): r"BitNetMLP .*ffn_sub_norm.weight of shape \[48\]",
    ("lfm2", "heads"): "Lfm2DecoderLayer has no part for attention",
    ("lfm2", "neuron"): "Lfm2DecoderLayer has no part `mlp`",
    ("lfm2", "block"): "the blocks of Lfm2Model are of several kinds",
    ("mpt", "heads"): "MptAttention .*no map to the heads",
    ("mpt", "neuron"): "MptBlock has no part `mlp`",
}


def made(name, **changes):
    stem, settings = LAYOUTS[name]
    config = getattr(hf, f"{stem}Config")(**{**settings, **changes})
    kind = getattr(hf, f"{stem}ForCausalLM", None) or getattr(hf, f"{stem}LMHeadModel")
    config.architectures, config._attn_implementation = [kind.__name__], "eager"
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 8 if parameter.dim() > 1 else 1
    return model


def walked(model):
    parts = verified(model)
    walk = Walk(parts, TOKENS.shape[1])
    return parts.logits(walk(walk.embed(TOKENS), Visitor()))


@torch.no_grad()
def assert_walk_is_plain(plain):
    torch.testing.assert_close(walked(boot(copy.deepcopy(plain))), plain(TOKENS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("by_layer", [False, True])
def test_a_gpt2_that_divides_scores_by_the_layer_is_scaled_once(by_layer):
    plain = made("gpt2", scale_attn_by_inverse_layer_idx=by_layer)
    assert_walk_is_plain(plain)
    assert verified(boot(plain)).blocks[2].scale == pytest.approx(8**-0.5 / (3 if by_layer else 1))


def test_a_gpt2_without_scale_is_refused_since_the_bridge_scales_it():
    with pytest.raises(UsageError, match="scale_attn_weights=False"):
        verified(boot(made("gpt2", scale_attn_weights=False)))


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_a_norm_without_a_weight_is_walked_where_its_epsilon_counts_too(size):
    plain = made("olmo")
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter *= size
    assert_walk_is_plain(plain)
    assert all(block.ln1.weight is None and block.ln1.eps == 1e-5 for block in verified(boot(plain)).blocks)


@torch.no_grad()
def without(plain, plan):
    """The plain model with zeros where a plan takes heads and neurons out, and blocks passed by."""
    model = copy.deepcopy(plain)
    lists = [part for part in model.base_model.children() if isinstance(part, torch.nn.ModuleList)]
    (blocks,) = (part for part in lists if len(part) == model.config.num_hidden_layers)

    def pass_by(block, given, named, out):
        x = given[0] if given else named["hidden_states"]
        return (x, *out[1:]) if isinstance(out, tuple) else x

    def writing(part, names):
        found = next(getattr(part, name) for name in names if hasattr(part, name))
        return found.weight.T if type(found).__name__ == "Conv1D" else found.weight

    for layer in plan.blocks:
        blocks[layer].register_forward_hook(pass_by, with_kwargs=True)
    for layer, heads in plan.heads:
        names = ("self_attn", "attn", "self_attention")
        attention = next(getattr(blocks[layer], name) for name in names if hasattr(blocks[layer], name))
        attention = getattr(attention, "attention", attention)  # GPT-Neo's
        weight = writing(attention, ("o_proj", "c_proj", "dense", "out_proj"))
        weight.unflatten(1, (4, -1))[:, list(heads)] = 0
    for layer, neurons in plan.neurons:
        writing(blocks[layer].mlp, ("down_proj", "c_proj", "fc_out", "fc2", "dense_4h_to_h"))[:, list(neurons)] = 0
    return model(TOKENS).logits


@pytest.mark.parametrize("unit", ["group", "head", "neuron", "block"])
@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_magnitude_pruning_is_right_or_refused_by_name(name, unit):
    plain = made(name)
    model = deploy(boot(copy.deepcopy(plain)))
    method = MagnitudePruning(budget=0.5, unit=unit)
    refused = REFUSED.get((name, "heads" if unit in ("group", "head") else unit))
    if refused is not None:
        with pytest.raises(UsageError, match=refused):
            method.plan(model)
        return
    plan = method.plan(model)
    assert plan.blocks or plan.heads or plan.neurons
    with plan.applied(model):
        torch.testing.assert_close(model(TOKENS).logits, without(plain, plan), rtol=1e-4, atol=1e-4)
        assert model.generate(TOKENS[:1], max_new_tokens=2, do_sample=False, pad_token_id=0).shape[1] <= 11
    assert torch.equal(model(TOKENS).logits, deploy(boot(copy.deepcopy(plain)))(TOKENS).logits)


def test_a_map_that_is_not_as_wide_as_its_name_says_is_refused():
    model = deploy(boot(made("starcoder2")))
    model.model.layers[1].mlp.c_fc.weight = torch.nn.Parameter(torch.zeros(3 * 48, 32))
    with pytest.raises(UsageError, match=r"Starcoder2MLP .*maps 144, 48 wide for 48 neurons"):
        MagnitudePruning(budget=0.5, unit="neuron").plan(model)
