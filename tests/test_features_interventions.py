"""Steering, ablating and clamping features, against what the activation must become."""

import pytest
import torch
from families import VOCABULARY, tiny

from interp.engine.forward import Recorder, Visitor, Walk
from interp.engine.parts import parts_of
from interp.errors import UsageError
from interp.features.interventions import Intervening, ablate, clamp, functions, logit_change, steer, strongest
from interp.features.place import Place
from interp.graph import Node

TOKENS = torch.randint(4, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(0))


class Stand:
    """A TopK dictionary with random weights, as plain as can be."""

    def __init__(self, reads, writes=None, d=32, d_out=None, size=24, k=4, scale=1.0, seed=0):
        draw = torch.Generator().manual_seed(seed)
        self.reads, self.writes, self.k, self.scale = reads, writes or reads, k, scale
        self.d_in, self.d_out = d, d_out or d
        self.W_enc = torch.randn(d, size, generator=draw)
        self.W_dec = torch.nn.functional.normalize(torch.randn(size, self.d_out, generator=draw), dim=-1)
        self.b_dec = torch.randn(self.d_out, generator=draw)

    def encode(self, x):
        values, at = (x * self.scale @ self.W_enc).relu().topk(self.k, -1)
        return torch.zeros(*x.shape[:-1], len(self.W_dec)).scatter(-1, at, values)

    def decode(self, f):
        return (f @ self.W_dec + self.b_dec) / self.scale


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.fixture(scope="module")
def sae():
    return Stand(Place("resid_post", 1))


def activation(model, *edits, site="resid_post", layer=1):
    parts = parts_of(model)
    walk, kept = Walk(parts, TOKENS.shape[1]), Recorder({site, "mlp_port"})

    class Both(Visitor):
        def visit(self, layer, site, first, x):
            x = edits[0].visit(layer, site, first, x) if edits else x
            return kept.visit(layer, site, first, x)

    with torch.no_grad():
        final = walk(walk.embed(TOKENS), Both())
    return kept.kept[site, layer], final, kept.kept


def test_steering_adds_the_decoder_row_times_the_coefficient_exactly(model, sae):
    clean, *_ = activation(model)
    steered, *_ = activation(model, Intervening(parts_of(model), steer(sae, 7, 2.5)))
    assert torch.equal(steered, clean + 2.5 * sae.W_dec[7])


def test_steering_is_in_units_of_the_feature_when_the_dictionary_scales_its_input(model):
    scaled = Stand(Place("resid_post", 1), scale=0.25)
    clean, *_ = activation(model)
    steered, *_ = activation(model, Intervening(parts_of(model), steer(scaled, 7, 2.5)))
    f = scaled.encode(clean)
    f[..., 7] += 2.5
    torch.testing.assert_close(steered - clean, scaled.decode(f) - scaled.decode(scaled.encode(clean)))


def test_ablating_an_inactive_feature_changes_nothing(model, sae):
    clean, final, _ = activation(model)
    idle = [i for i in range(24) if not (sae.encode(clean)[..., i] != 0).any()]
    one = idle[0] if idle else None
    if one is None:  # every feature is active somewhere: look at one position where this one is not
        one, positions = 0, sorted(set(range(9)) - set((sae.encode(clean)[..., 0] != 0).nonzero()[:, 1].tolist()))
    else:
        positions = None
    changed, after, _ = activation(model, Intervening(parts_of(model), ablate(sae, one, positions=positions)))
    assert torch.equal(changed, clean)
    assert torch.equal(after, final)


def test_ablating_takes_out_what_the_features_wrote_and_keeps_the_error(model, sae):
    clean, *_ = activation(model)
    f = sae.encode(clean)
    changed, *_ = activation(model, Intervening(parts_of(model), ablate(sae, [3, 5])))
    expected = clean - f[..., 3:4] * sae.W_dec[3] - f[..., 5:6] * sae.W_dec[5]
    torch.testing.assert_close(changed, expected)


def test_without_the_error_only_the_changed_reconstruction_is_left(model, sae):
    clean, *_ = activation(model)
    f = sae.encode(clean)
    f[..., 2] = 4.0
    changed, *_ = activation(model, Intervening(parts_of(model), clamp(sae, 2, 4.0, error=False)))
    assert torch.equal(changed, sae.decode(f))


def test_clamping_holds_the_feature_at_the_value(model, sae):
    clean, *_ = activation(model)
    changed, *_ = activation(model, Intervening(parts_of(model), clamp(sae, 2, 4.0)))
    expected = clean + (4.0 - sae.encode(clean)[..., 2:3]) * sae.W_dec[2]
    torch.testing.assert_close(changed, expected)


def test_an_edit_touches_only_its_positions(model, sae):
    clean, *_ = activation(model)
    changed, *_ = activation(model, Intervening(parts_of(model), steer(sae, 7, 2.5, positions=[4])))
    assert torch.equal(changed[:, 4], clean[:, 4] + 2.5 * sae.W_dec[7])
    assert torch.equal(changed[:, [0, 1, 2, 3, 5, 6, 7, 8]], clean[:, [0, 1, 2, 3, 5, 6, 7, 8]])


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_a_transcoder_reads_the_mlps_input_and_changes_its_output(family):
    model = tiny(family)
    coder = Stand(Place("mlp_in", 1), Place("mlp_out", 1))
    clean, _, kept = activation(model, site="mlp_out")
    read = parts_of(model).blocks[1].ln2(kept["mlp_port", 1])
    changed, *_ = activation(model, Intervening(parts_of(model), ablate(coder, 3)), site="mlp_out")
    torch.testing.assert_close(changed, clean - coder.encode(read)[..., 3:4] * coder.W_dec[3])


def test_edits_of_heads_outputs_work_on_all_heads_side_by_side(model):
    coder = Stand(Place("z", 1))
    clean, *_ = activation(model, site="z")
    changed, *_ = activation(model, Intervening(parts_of(model), steer(coder, 0, 1.5)), site="z")
    torch.testing.assert_close(changed.flatten(2), clean.flatten(2) + 1.5 * coder.W_dec[0])


def test_two_edits_at_one_place_are_made_one_after_the_other(model, sae):
    clean, *_ = activation(model)
    both, *_ = activation(model, Intervening(parts_of(model), steer(sae, 1, 1.0), steer(sae, 2, -2.0)))
    torch.testing.assert_close(both, clean + sae.W_dec[1] - 2 * sae.W_dec[2])


@pytest.mark.parametrize("reads", ["resid_post", "mlp_in"])
def test_patchings_own_interventions_take_edits(reads):
    import interp
    from interp.patching import intervene
    from interp.tasks import task

    model = interp.load("toy-induction-trained")
    width = model.cfg.d_model
    writes = Place("resid_post" if reads == "resid_post" else "mlp_out", 0)
    coder = Stand(Place(reads, 0), writes, d=width)
    edits = functions(model, steer(coder, 3, 5.0), ablate(coder, 4))
    induction = task("induction", model, n=4)
    effect = intervene(model, induction, edits)
    assert all(Node.parse(name).layer == 0 for name in edits)
    assert abs(float(effect.squeeze())) > 1e-2
    again = intervene(model, induction, functions(model, steer(coder, 3, 0.0)))
    # the edited rows are resumed from the layer, the clean ones run as a whole: float32 sums in other orders
    assert float(again.squeeze()) == pytest.approx(0, abs=1e-5)


def test_the_change_of_logits_is_edited_minus_clean(model, sae):
    change = logit_change(model, TOKENS, steer(sae, 7, 2.5), at=5)
    parts = parts_of(model)
    _, clean, _ = activation(model)
    _, edited, _ = activation(model, Intervening(parts, steer(sae, 7, 2.5)))
    torch.testing.assert_close(change, parts.logits(edited[:, 5]) - parts.logits(clean[:, 5]))
    table = strongest(model, change, 3)
    assert list(table["change"]) == sorted(table["change"], reverse=True)
    assert len(table) == 6


def test_what_makes_no_sense_is_refused(model, sae):
    with pytest.raises(UsageError, match="0 to 23"):
        steer(sae, 24, 1.0)
    with pytest.raises(UsageError, match="counted from 0"):
        ablate(sae, 1, positions=[-1])
    with pytest.raises(UsageError, match="has 32"):
        functions(model, steer(Stand(Place("resid_post", 1), d=16), 0, 1.0))
    with pytest.raises(UsageError, match="layer 9"):
        functions(model, steer(Stand(Place("resid_post", 9)), 0, 1.0))
    with pytest.raises(UsageError, match="before it reads"):
        functions(model, steer(Stand(Place("resid_post", 1), Place("mlp_out", 1)), 0, 1.0))
    with pytest.raises(UsageError, match="one edit"):
        functions(model)
    with pytest.raises(UsageError, match="out of range"):
        logit_change(model, TOKENS, steer(sae, 0, 1.0), at=9)
