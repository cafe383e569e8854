"""Weights and inputs in few bits: bounds on errors, kernels against plain arithmetic, plans undone, saved, refused."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import pytest
import torch
from families import tiny

import interp
from interp.efficiency import Plan, deploy, load, save
from interp.efficiency.decoding import Decoder, storage_bytes
from interp.efficiency.quantization import AWQ, GPTQ, LLMFP4, RTN, W8A8, AdaDim, LoRC, Scheme, kernels
from interp.efficiency.quantization.codes import FLOATS, grid, rounded
from interp.efficiency.quantization.kept import Kept
from interp.efficiency.quantization.linear import Int4Linear, Int8BothLinear, Int8Linear, coded_linear
from interp.efficiency.quantization.solvers import gptq, low_rank, output_error
from interp.efficiency.quantization.statistics import awq_scales, text_of, values_of
from interp.errors import UsageError
from interp.results import scores
from interp.results.findings import SinkPositions
from interp.statistics import activation_statistics

TEXTS = torch.randint(4, 50, (6, 20), generator=torch.Generator().manual_seed(0))
TOKENS = TEXTS[:1, :9]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def bridge(family="llama", **sizes):
    return tiny(family, **dict(sizes))


@functools.cache
def statistics(family="llama"):
    return activation_statistics(bridge(family), TEXTS, 6, 20)


def sinks(family="llama", positions=(0,)):
    attention = scores(np.zeros((3, 4)), ("layer", "position"), {}, name="attention")
    fingerprint = interp.models.fingerprint(bridge(family))
    return SinkPositions(model="tiny", fingerprint=fingerprint, positions=positions, evidence={"attention": attention})


METHODS = {
    "rtn 8": lambda family: RTN(bits=8),
    "rtn 4": lambda family: RTN(bits=4, group=16),
    "awq": lambda family: AWQ(statistics(family), group=16, steps=5),
    "gptq": lambda family: GPTQ(sinks(family), source=TEXTS, n=6, length=20, group=16),
    "adadim": lambda family: AdaDim(statistics(family), group=16),
    "lorc": lambda family: LoRC(rank=3, group=16),
    "llm-fp4": lambda family: LLMFP4(statistics(family), group=16),
    "w8a8": lambda family: W8A8(sinks(family), statistics(family)),
    "w8a8 sequence": lambda family: W8A8(sinks(family), scales="sequence"),
}


# Codes


@pytest.mark.parametrize("axis", ["input", "output"])
@pytest.mark.parametrize(("bits", "format"), [(8, "symmetric"), (8, "affine"), (4, "affine"), (4, "symmetric")])
@pytest.mark.parametrize("group", [None, 16])
def test_rounding_errs_by_half_a_step_at_most(bits, format, group, axis):
    weight = random(48, 64) * torch.logspace(-3, 2, 48)[:, None]
    scheme = Scheme(bits=bits, format=format, group=group, axis=axis)
    made = rounded(weight, scheme)
    frame = (lambda w: w.T) if axis == "output" else (lambda w: w)
    error = frame(made.decoded() - weight).reshape(*made.scale.shape, -1).abs().amax(-1)
    # the zero is rounded to bfloat16, which moves the ends of the grid
    slack = 0 if made.zero is None else made.zero.float().abs() * 2**-8
    assert (error <= 0.5 * made.scale.float() * 1.0001 + slack).all()


def test_a_floating_point_grid_is_that_of_its_format():
    expected = {
        "e2m1": [0, 1, 2, 3, 4, 6, 8, 12],
        "e1m2": [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5],
        "e3m0": [0, 2, 4, 8, 16, 32, 64, 128],
    }
    for format, sizes in expected.items():
        levels = grid(Scheme(bits=4, format=format), torch.device("cpu"))
        assert levels[7:].tolist() == sizes or (levels[7:] / levels[8]).tolist() == [s / sizes[1] for s in sizes]
        assert torch.equal(levels, -levels.flip(0))
        made = rounded(random(8, 32), Scheme(bits=4, format=format, group=16))
        all_levels = levels * made.scale.float()[..., None]
        nearest = (random(8, 32).reshape(8, 2, 16, 1) - all_levels[:, :, None]).abs().amin(-1)
        assert torch.allclose((made.decoded() - random(8, 32)).reshape(8, 2, 16).abs(), nearest, atol=1e-5)
    assert set(expected) == set(FLOATS)


def test_gptq_spoils_outputs_less_than_rounding_and_equals_it_where_inputs_are_independent():
    weight, x = random(32, 160), random(400, 160, seed=1) @ random(160, 160, seed=2)
    moment, scheme = x.T @ x / 400, Scheme(bits=4, format="affine", group=32)
    errors = [
        ((made.decoded() - weight) @ x.T).square().sum()
        for made in (gptq(weight, moment, scheme), rounded(weight, scheme))
    ]
    assert errors[0] < 0.8 * errors[1]
    alone = gptq(weight, torch.eye(160), scheme)
    assert torch.equal(alone.decoded(), rounded(weight, scheme).decoded())


def test_low_rank_is_the_best_of_its_rank():
    for shape in ((20, 50), (50, 20)):
        error = random(*shape)
        left, right = low_rank(error, 4)
        u, s, v = torch.linalg.svd(error)
        torch.testing.assert_close(left.float() @ right.float(), (u[:, :4] * s[:4]) @ v[:4], atol=0.05, rtol=0.05)


def test_statistics_survive_as_text_and_a_large_channel_gets_a_large_scale():
    size = torch.logspace(-2, 2, 40)
    assert (values_of(text_of(size)) / size - 1).abs().max() < 0.023
    s = awq_scales(size, 0.5)
    assert (s.diff() > 0).all()
    assert float(s.max() * s.min()) == pytest.approx(1, rel=1e-4)


# Layers


@pytest.mark.parametrize("outputs", [50, 64, 130])
@pytest.mark.parametrize(
    ("scheme", "kind"),
    [
        (Scheme(), Int8Linear),
        (Scheme(bits=4, format="affine", group=32), Int4Linear),
        (Scheme(bits=4, format="affine", group=64), Int4Linear),
        (Scheme(bits=4, format="affine", group=16), None),
        (Scheme(bits=4, format="e2m1", group=32), None),
    ],
)
def test_a_layer_multiplies_by_the_weights_that_its_codes_stand_for(scheme, kind, outputs):
    made = rounded(random(outputs, 64), scheme)
    layer = coded_linear(made, random(outputs, seed=3))
    if kind is not None and kernels.takes("int4" if kind is Int4Linear else "int8", 64):
        assert isinstance(layer, kind)
    for count in (1, 3, 40):
        x = random(2, count, 64, seed=count)
        expected = x @ made.decoded().T + random(outputs, seed=3)
        assert (layer(x) - expected).abs().max() < 0.02 * expected.abs().max()
        assert layer(x).dtype == x.dtype
        assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(layer.weight, made.decoded())


def test_a_layer_s_bytes_are_those_of_its_bits():
    weight = random(128, 256)
    for scheme, bits in ((Scheme(), 8 + 16 / 256), (Scheme(bits=4, format="affine", group=64), 4 + 32 / 64)):
        assert storage_bytes(coded_linear(rounded(weight, scheme))) == weight.numel() * bits / 8


def test_integer_inputs_are_exact_where_they_are_integers():
    weight = torch.randint(-127, 128, (64, 32)).float()
    weight[:, 0] = 127
    layer = coded_linear(rounded(weight, Scheme(activations="token")))
    assert isinstance(layer, Int8BothLinear)
    x = torch.randint(-127, 128, (1, 5, 32)).float()
    x[..., 0] = 127
    scale = layer.scale[:, 0].float()
    torch.testing.assert_close(layer(x), x @ (layer.stored().codes.float() - 128).T * scale)
    extreme = torch.full((1, 2, 32), 3.3e4)
    assert torch.allclose(layer(extreme), extreme @ layer.weight.T, rtol=1e-2)


def test_a_sink_kept_in_full_precision_sets_no_scale():
    layer = coded_linear(rounded(random(64, 32), Scheme(activations="sequence")))
    x = random(1, 6, 32, seed=5)
    x[:, 0] *= 1e4
    right = x @ layer.weight.T
    ruined = (layer(x) - right)[:, 1:].abs().max()
    layer.kept = Kept((0,))
    layer.kept(None, (), {"input_ids": torch.zeros(1, 6, dtype=torch.long)})
    error = (layer(x) - right).abs()
    assert error[:, 1:].max() < 0.05 * right[:, 1:].abs().max() < ruined
    assert error[:, 0].max() < 0.01 * right[:, 0].abs().max()


def test_kept_tokens_are_counted_behind_padding_and_behind_a_cache():
    kept = Kept((0, 1), (9,))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    tokens = torch.tensor([[3, 9, 5, 5, 5, 9], [5, 5, 5, 5, 5, 5]])
    kept(None, (tokens,), {"attention_mask": mask})
    assert kept.mask.int().tolist() == [[0, 0, 1, 1, 0, 1], [1, 1, 0, 0, 0, 0]]
    assert kept.padding.int().tolist() == [[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    kept(None, (), {"input_ids": tokens[:, :1], "attention_mask": mask})
    assert kept.mask is None


# Plans


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", METHODS)
def test_a_plan_is_near_the_model_undone_permanent_and_loads_on_its_own(name, family, tmp_path):
    model = deploy(bridge(family))
    before = {key: (tensor.data_ptr(), tensor.clone()) for key, tensor in model.state_dict().items()}
    clean = model(TOKENS).logits.detach()
    plan = METHODS[name](family).plan(model)
    with plan.applied(model):
        applied = model(TOKENS).logits.detach()
    assert 0 < (applied - clean).abs().max() < (0.1 if "8" in name else 0.6) * clean.abs().max()
    after = model.state_dict()
    assert {key: at for key, (at, _) in before.items()} == {key: tensor.data_ptr() for key, tensor in after.items()}
    assert all(torch.equal(after[key], tensor) for key, (_, tensor) in before.items())
    assert torch.equal(model(TOKENS).logits, clean)

    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    own = again.made_permanent(model)
    assert torch.equal(own(TOKENS).logits, applied)
    assert storage_bytes(own) == plan.ledger(model, 8).weight_bytes.after < 0.6 * storage_bytes(model)
    save(own, tmp_path / "model")
    loaded = load(tmp_path / "model")
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 3}
    assert torch.equal(own.generate(TOKENS, **options), loaded.generate(TOKENS, **options))
    assert torch.equal(loaded(TOKENS).logits, applied)


@pytest.mark.parametrize("name", ["rtn 4", "w8a8", "w8a8 sequence"])
def test_a_batch_with_padding_equals_single_prompts(name):
    model = deploy(bridge())
    short, long = TEXTS[1, :5], TEXTS[2, :9]
    padded = torch.stack([torch.cat([torch.full((4,), 3), short]), long])
    mask = (torch.arange(9) >= torch.tensor([[4], [0]])).long()
    with METHODS[name]("llama").plan(model).applied(model):
        options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 3}
        together = model.generate(padded, attention_mask=mask, **options)
        for row, prompt in zip(together, (short, long), strict=True):
            alone = model.generate(prompt[None], **options)[0, len(prompt) :]
            assert torch.equal(row[9 : 9 + len(alone)], alone)


def test_a_text_in_pieces_gives_the_same_as_in_one():
    model = deploy(bridge())
    with METHODS["w8a8"]("llama").plan(model).applied(model):
        whole, pieces = (Decoder(model).logits(TEXTS[:2, :9], piece) for piece in (9, 4))
    torch.testing.assert_close(whole, pieces, atol=0.05, rtol=0.05)


def test_a_tied_embedding_reads_the_head_s_codes_and_is_tied_again():
    model = deploy(bridge("gpt2"))
    head = model.get_output_embeddings()
    with RTN(bits=8).plan(model).applied(model):
        coded, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        assert torch.equal(embedding(TOKENS), coded.weight[TOKENS])
        assert not model.config.tie_word_embeddings
    assert model.get_output_embeddings() is head
    assert model.config.tie_word_embeddings
    assert model.get_input_embeddings().weight is head.weight
    with RTN(bits=8, head=False).plan(model).applied(model):
        assert model.get_output_embeddings() is head


def test_a_budget_of_one_changes_nothing_and_budgets_are_bits():
    model = deploy(bridge())
    plan = RTN(budget=1).plan(model)
    with plan.applied(model):
        assert torch.equal(model(TOKENS).logits, deploy(bridge())(TOKENS).logits)
    assert plan.ledger(model, 8).weight_bytes.share == 1
    assert RTN(budget=0.5).bits == 8
    assert RTN(budget=0.3, group=16).bits == 4
    assert RTN(bits=4).budget == 0.25


def test_a_plan_is_made_anew_when_the_weights_have_changed():
    model = deploy(tiny("llama"))
    plan = RTN(bits=8).plan(model)
    own = plan.made_permanent(model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(2)
    with plan.applied(model):
        doubled = model.model.layers[0].mlp.up_proj.weight
    torch.testing.assert_close(doubled, 2 * own.model.layers[0].mlp.up_proj.weight, atol=1e-2, rtol=1e-2)


def test_findings_decide_and_their_controls_are_of_the_same_size():
    model = deploy(bridge())
    for method in (AWQ(statistics(), group=16, steps=5), AdaDim(statistics(), group=16)):
        plan, drawn, inverted = method.plan(model), method.random_plan(model, 1), method.inverted_plan(model)
        sums = [sum(one.errors) for one in (plan, drawn, inverted)]
        assert sums[0] < min(sums[1:])
        shares = {one.ledger(model, 8).weight_bytes.after for one in (plan, drawn)}
        assert len(shares) == 1 or method.name == "adadim" or plan.values != drawn.values
        assert plan.findings == ("ActivationStatistics",)
    drawn = W8A8(sinks(positions=(0, 1))).random_plan(model, seed=1)
    assert len(drawn.kept["positions"]) == 2
    assert 0 not in drawn.kept["positions"]


def test_expected_errors_are_those_of_outputs():
    model = deploy(bridge())
    plan = AdaDim(statistics(), group=16).plan(model)
    seen = {}
    handle = model.model.layers[1].mlp.up_proj.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    model(TEXTS)
    handle.remove()
    x = seen["x"][:, 1:].flatten(0, 1).detach()
    weight = model.model.layers[1].mlp.up_proj.weight.detach()
    row = [name for name, _ in plan.layers].index("layers.1.mlp.up_proj")
    found = rounded(weight, plan.scheme(plan.layers[row][1])).decoded()
    assert plan.errors[row] == pytest.approx(output_error(weight, found, x.square().mean(0)), rel=1e-3)
    measured = float(((found - weight) @ x.T).square().sum() / (weight @ x.T).square().sum())
    assert 0.3 < plan.errors[row] / measured < 3


def test_plans_have_tables_and_pictures():
    model = deploy(bridge())
    for name in ("rtn 4", "awq"):
        plan = METHODS[name]("llama").plan(model)
        frame = plan.to_frame()
        assert len(frame) == 3 * 7 + 1
        assert set(frame.columns) == {"layer", "stored", "kernel", "value", "error"}
        assert plan.figure().data[0].z.shape == (3, 7)


def test_bad_requests_are_refused_and_the_layer_is_named():
    model = deploy(bridge())
    with pytest.raises(
        UsageError, match=r"groups of 32 do not divide the 48 inputs of layers\.0\.mlp\.down_proj; take"
    ):
        RTN(bits=4, group=32).plan(model)
    with pytest.raises(UsageError, match="is about tiny"):
        AWQ(statistics("gpt2"), group=16).plan(model)
    plan = RTN(bits=8).plan(model)
    with pytest.raises(UsageError, match=r"q_proj is quantised already"), plan.applied(model), plan.applied(model):
        pass
    for options, message in (
        ({"budget": 0.1}, "the least that works is 0.25"),
        ({"budget": 2}, r"must be in \(0, 1\]"),
        ({"bits": 5}, "8 or 4 bits, not 5"),
        ({"bits": 4, "budget": 0.5}, "not both"),
    ):
        with pytest.raises(UsageError, match=message):
            RTN(**options)
    with pytest.raises(UsageError, match="weights have 8 bits"):
        W8A8(budget=0.25)
    with pytest.raises(UsageError, match="migration must be between"):
        W8A8(migration=1)
    with pytest.raises(UsageError, match="unknown scales"):
        W8A8(scales="layer")
    model.model.layers[1].extra = torch.nn.Linear(4, 4)
    with pytest.raises(UsageError, match=r"layers\.1\.extra \(Linear\) of LlamaForCausalLM can't be quantised"):
        RTN(bits=8).plan(model)


def test_the_registry_makes_each_method():
    made = interp.efficiency.make("awq", [statistics()], bits=4, group=16)
    assert isinstance(made, AWQ)
    assert isinstance(interp.efficiency.make("w8a8", [sinks(), statistics()]), W8A8)
    with pytest.raises(UsageError, match=r"interp\.statistics\.activation_statistics"):
        interp.efficiency.make("adadim")


@pytest.mark.real_model
def test_a_sink_ruins_inputs_in_8_bits_with_one_scale_unless_it_is_kept(smollm2):
    model = deploy(smollm2)
    attention = scores(np.zeros((1, 1)), ("layer", "position"), {}, name="attention")
    where = SinkPositions(
        model="smollm2",
        fingerprint=interp.models.fingerprint(smollm2),
        positions=(0,),
        evidence={"attention": attention},
    )
    tokens = interp.tasks.corpus("prose", smollm2, 1, 128, 0)

    def loss():
        logits = model(tokens).logits[0, :-1]
        return float(torch.nn.functional.cross_entropy(logits, tokens[0, 1:]))

    with torch.no_grad():
        dense = loss()
        method = W8A8(where, scales="sequence")
        with W8A8(scales="sequence").plan(model).applied(model):
            ruined = loss()
        with method.plan(model).applied(model):
            kept = loss()
        with method.random_plan(model).applied(model):
            drawn = loss()
    assert ruined - dense > 0.5
    assert kept - dense < 0.5 * (ruined - dense)
    assert kept < drawn


def test_weights_that_are_on_the_grid_already_are_told():
    model = deploy(tiny("llama"))
    plan = RTN(bits=4, group=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan.plan(model)
    for layer in model.model.layers:
        weight = layer.self_attn.q_proj.weight
        weight.data = rounded(weight.data, Scheme(bits=4, format="affine", group=16)).decoded()
    with pytest.warns(UserWarning, match=r"on a grid of 4 bits in groups of 16 already.*a group of 32 would"):
        plan.plan(model)
