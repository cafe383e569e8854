"""Judging dictionaries: against sums by hand, the bridge's own hooks, and dictionaries whose answer is known."""

import numpy as np
import pytest
import torch
from families import VOCABULARY, tiny
from scipy.optimize import minimize

from interp.engine.forward import Walk, run
from interp.engine.parts import parts_of
from interp.errors import UsageError
from interp.features.judging.absorption import _activations, absorbed, absorption, f1, splits
from interp.features.judging.baselines import Constant, LowRank, Moments, RandomDirections, beside
from interp.features.judging.dark_matter import ErrorModel, dark_matter
from interp.features.judging.judge import judge
from interp.features.judging.measures import Tally
from interp.features.judging.probing import logistic, probe_accuracy, sparse_probing
from interp.features.judging.splice import CleanRun, Splicing, decode, encode, rebuilt
from interp.features.place import Place
from interp.results import load, save

TOKENS = torch.randint(4, VOCABULARY, (6, 12), generator=torch.Generator().manual_seed(0))
PLACES = ["resid_pre.1", "resid_mid.1", "resid_post.1", "attn_out.0", "mlp_out.2", "z.1", "v.1", "post.1"]


class Stand:
    """A TopK dictionary with random weights, as plain as can be."""

    def __init__(self, reads, writes=None, d=32, d_out=None, size=24, k=4, seed=0):
        draw = torch.Generator().manual_seed(seed)
        self.reads, self.writes, self.k = Place.parse(reads), Place.parse(writes or reads), k
        self.W_enc = torch.randn(d, size, generator=draw)
        self.W_dec = torch.nn.functional.normalize(torch.randn(size, d_out or d, generator=draw), dim=-1)
        self.b_dec = 0.1 * torch.randn(d_out or d, generator=draw)

    def encode(self, x):
        values, at = (x @ self.W_enc).relu().topk(self.k, -1)
        return torch.zeros(*x.shape[:-1], len(self.W_dec)).scatter(-1, at, values)

    def decode(self, f):
        return f @ self.W_dec + self.b_dec


class Perfect(Stand):
    """Two features a channel, one for each sign: nothing is lost."""

    def __init__(self, place, d=32):
        super().__init__(place, d=d)
        self.W_dec, self.b_dec = torch.cat([torch.eye(d), -torch.eye(d)]), torch.zeros(d)

    def encode(self, x):
        return torch.cat([x.relu(), (-x).relu()], -1)


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.fixture(scope="module")
def said(model):
    """Texts that the model itself goes on with, so that it knows what comes next."""
    tokens = TOKENS[:, :3]
    with torch.no_grad():
        while tokens.shape[1] < 12:
            tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(-1)], 1)
    return tokens


@pytest.fixture(scope="module")
def report(model, said):
    return judge(model, Stand("resid_post.1"), said, batch=2)


def width(place, graph):
    return Place.parse(place).width(graph)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma3"])
@pytest.mark.parametrize("place", PLACES)
@torch.no_grad()
def test_going_on_from_a_place_is_the_whole_run_with_another_activation_there(family, place):
    parts = parts_of(tiny(family))
    if parts.graph.parallel and place.startswith("resid_mid"):
        pytest.skip("parallel blocks have no resid_mid")
    stand = Stand(place, d=width(place, parts.graph))
    resumed = CleanRun(parts, TOKENS, stand.reads, stand.writes)
    _, plain = run(parts, TOKENS, set())
    torch.testing.assert_close(resumed.final(), plain)
    walk = Walk(parts, TOKENS.shape[1])
    whole = walk(walk.embed(TOKENS), Splicing(parts, stand))
    torch.testing.assert_close(resumed.final(rebuilt(stand, resumed.read)), whole)
    assert not torch.allclose(whole, plain)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_a_transcoder_is_spliced_from_the_mlps_input_to_its_output(family):
    model = tiny(family)
    parts, stand = parts_of(model), Stand("mlp_in.1", "mlp_out.1")
    clean = CleanRun(parts, TOKENS, stand.reads, stand.writes)
    block = parts.blocks[1]
    mid = run(parts, TOKENS, {"resid_mid"})[0]["resid_mid", 1]
    torch.testing.assert_close(clean.read, block.ln2(mid))
    walk = Walk(parts, TOKENS.shape[1])
    whole = walk(walk.embed(TOKENS), Splicing(parts, stand))
    torch.testing.assert_close(clean.final(rebuilt(stand, clean.read)), whole)


def test_loss_and_divergence_are_the_bridges_own_with_the_reconstruction_hooked_in(model, said, report):
    stand, judged = Stand("resid_post.1"), said[3:]

    def replace(x, hook):
        return stand.decode(stand.encode(x))

    with torch.no_grad():
        clean = torch.log_softmax(model(judged), -1)
        spliced = torch.log_softmax(model.run_with_hooks(judged, fwd_hooks=[("blocks.1.hook_resid_post", replace)]), -1)
        zeroed = torch.log_softmax(
            model.run_with_hooks(judged, fwd_hooks=[("blocks.1.hook_resid_post", lambda x, hook: 0 * x)]), -1
        )

    def loss(logprobs):
        return float(-logprobs[:, :-1].gather(-1, judged[:, 1:, None]).double().mean())

    divergence = float((clean.exp() * (clean - spliced)).sum(-1)[:, :-1].double().mean())
    assert report.value("ce") == pytest.approx(loss(spliced), abs=1e-4)
    assert report.value("kl") == pytest.approx(divergence, abs=1e-4)
    recovered = (loss(zeroed) - loss(spliced)) / (loss(zeroed) - loss(clean))
    assert report.value("ce_recovered") == pytest.approx(recovered, abs=1e-3)
    assert report.scores.attrs["ce_clean"] == pytest.approx(loss(clean), abs=1e-4)
    assert report.scores.attrs["ce_zero"] == pytest.approx(loss(zeroed), abs=1e-4)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", torch.float32), ("llama", torch.bfloat16), ("gpt2", torch.float32), ("gemma3", torch.float32)],
)
def test_with_the_error_the_loss_is_the_clean_one_to_the_last_bit(family, dtype):
    found = judge(tiny(family, dtype=dtype), Stand("resid_pre.1"), TOKENS)
    for method in found.scores["method"].values:
        assert found.value("ce_with_error", method) == found.scores.attrs["ce_clean"]
        assert found.value("kl_with_error", method) == 0


@torch.no_grad()
def test_splicing_with_the_error_and_no_change_leaves_the_run_alone(model):
    parts, walk = parts_of(model), Walk(parts_of(model), TOKENS.shape[1])
    kept = walk(walk.embed(TOKENS), Splicing(parts, Stand("mlp_in.1", "mlp_out.1"), error=True))
    assert torch.equal(kept, run(parts, TOKENS, set())[1])


def test_measures_of_reconstruction_are_what_sums_by_hand_give(model, said, report):
    stand, parts = Stand("resid_post.1"), parts_of(model)
    x = run(parts, said[3:], {"resid_post"})[0]["resid_post", 1].detach()
    f = stand.encode(x)
    y, z = x.double().numpy(), stand.decode(f).double().numpy()

    def r2(y, z):
        y, z = y.reshape(-1, 32), z.reshape(-1, 32)
        return 1 - ((y - z) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()

    assert report.value("r2") == pytest.approx(r2(y, z))
    assert report.value("r2_with_first") == pytest.approx(r2(y, z))
    assert report.value("r2_without_first") == pytest.approx(r2(y[:, 1:], z[:, 1:]))
    size, other = np.linalg.norm(y, axis=-1), np.linalg.norm(z, axis=-1)
    assert report.value("cosine") == pytest.approx(((y * z).sum(-1) / size / other).mean())
    assert report.value("norm_ratio") == pytest.approx((other / size).mean())
    best = minimize(lambda g: ((y - z / g) ** 2).sum(), x0=[1.0], method="Nelder-Mead", options={"xatol": 1e-9})
    assert report.value("gamma") == pytest.approx(best.x[0], rel=1e-4)
    on = (f != 0).double().numpy().reshape(-1, 24)
    assert report.value("l0") == pytest.approx(on.sum(-1).mean())
    assert report.value("dead") == pytest.approx((on.sum(0) == 0).mean())
    assert report.value("dense") == pytest.approx((on.mean(0) > 0.1).mean())
    np.testing.assert_allclose(report.density["dictionary"].values, on.mean(0))
    here = report.by_position.loc[{"method": "dictionary"}]
    expected = ((y - z) ** 2).sum((0, 2)) / (y**2).sum((0, 2))
    np.testing.assert_allclose(here.sel(metric="error").values, expected)
    np.testing.assert_allclose(here.sel(metric="ce").values[:-1].mean(), report.value("ce"))
    assert np.isnan(here.sel(metric="ce").values[-1])


def test_the_sums_do_not_depend_on_how_texts_are_batched(model, said, report):
    other = judge(model, Stand("resid_post.1"), said, batch=3)
    np.testing.assert_allclose(other.scores.values, report.scores.values, rtol=1e-4, atol=1e-4)
    again = judge(model, Stand("resid_post.1"), said, batch=2)
    np.testing.assert_array_equal(again.scores.values, report.scores.values)


def test_nothing_is_lost_by_a_perfect_dictionary_and_all_by_zero_ablation(model, said):
    found = judge(model, Perfect("resid_post.1"), said)
    assert found.value("ce") == pytest.approx(found.scores.attrs["ce_clean"], abs=1e-6)
    assert found.value("kl") == pytest.approx(0, abs=1e-6)
    assert found.value("r2") == pytest.approx(1)
    assert found.value("gamma") == pytest.approx(1)
    assert found.value("l0") == 32
    gap = found.scores.attrs["ce_zero"] - found.scores.attrs["ce_clean"]
    assert gap > 0
    assert found.value("ce_recovered") == pytest.approx(1, abs=1e-5)
    assert found.value("ce_recovered", "zero") == 0
    assert found.value("ce_recovered_mean", "mean") == 0


def test_shrinkage_shows_in_gamma_and_in_the_norms(model):
    class Shrunk(Perfect):
        def decode(self, f):
            return 0.8 * (f @ self.W_dec)

    found = judge(model, Shrunk("resid_post.1"), TOKENS)
    assert found.value("gamma") == pytest.approx(0.8)
    assert found.value("norm_ratio") == pytest.approx(0.8)
    assert found.value("cosine") == pytest.approx(1)
    assert found.value("r2", "PCA") == pytest.approx(1, abs=1e-6)


def test_skipped_positions_are_left_as_they_are(model):
    class First(Perfect):
        """Wrong where the activation is the first position's."""

        def decode(self, f):
            out = f @ self.W_dec
            return torch.where(torch.isin(out[..., :1], self.first), 100.0, out)

    bad = First("resid_post.0")
    bad.first = run(parts_of(model), TOKENS, {"resid_post"})[0]["resid_post", 0][:, 0, :1].detach().flatten()
    counted_all, skipped = judge(model, bad, TOKENS), judge(model, bad, TOKENS, skip=1)
    assert counted_all.value("kl") > 0.01
    assert skipped.value("kl") == pytest.approx(0, abs=1e-6)
    assert skipped.value("r2") == skipped.value("r2_without_first") == pytest.approx(1)
    assert skipped.value("r2_with_first") < 0.9


def test_special_tokens_can_be_left_out(model):
    tokens = TOKENS.clone()
    tokens[:, 3] = model.tokenizer.bos_token_id
    found = judge(model, Stand("resid_post.1"), tokens, special=False)
    assert found.scores.attrs["tokens"] == 3 * 11
    assert np.isnan(found.by_position.loc[{"method": "dictionary", "metric": "cosine", "position": 3}])


def test_the_histogram_counts_every_feature_once(report):
    table = report.histogram()
    assert table["dictionary"].sum() == 24
    assert table["dictionary"][0] == (report.density["dictionary"].values == 0).sum()
    assert "recovered" in repr(report)
    assert "<table" in report._repr_html_()


def test_the_arrays_of_a_report_can_be_kept_in_files(report, tmp_path):
    for name, array in {"scores": report.scores, "density": report.density["PCA"]}.items():
        save(array, tmp_path / f"{name}.json")
        np.testing.assert_array_equal(load(tmp_path / f"{name}.json").values, array.values)


def moments_of(x, y, n=None):
    found = Moments(x.shape[1], y.shape[1])
    for a, b in zip(x.split(n or 37), y.split(n or 37), strict=True):
        found.add(a, b)
    return found


def data(n=400, d=6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=draw) @ torch.randn(d, d, generator=draw) + 3


def test_moments_and_regression_are_those_of_all_tokens_together():
    x, y = data(), data(seed=1)
    found = moments_of(x, y)
    expected = np.cov(torch.cat([x, y], 1).double().numpy().T, bias=True)
    np.testing.assert_allclose(found.covariance.numpy(), expected, atol=1e-9)
    matrix, constant = found.regression()
    design = np.c_[x.double().numpy(), np.ones(len(x))]
    solution = np.linalg.lstsq(design, y.double().numpy(), rcond=None)[0]
    np.testing.assert_allclose(matrix.numpy(), solution[:-1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(constant.numpy(), solution[-1], rtol=1e-5, atol=1e-7)
    with pytest.raises(UsageError, match="more than 7 tokens"):
        moments_of(x[:7], y[:7]).regression()


def test_principal_components_are_those_of_a_singular_value_decomposition():
    x = data().double()
    low = LowRank(moments_of(x, x), 2, True, x)
    mean = x.mean(0)
    _, _, v = torch.linalg.svd(x - mean, full_matrices=False)
    expected = mean + (x - mean) @ v[:2].T @ v[:2]
    torch.testing.assert_close(low.decode(low.encode(x)), expected)


def test_between_two_places_low_rank_is_the_best_prediction_of_that_rank():
    x = data().double()
    y = x[:, :1] @ torch.ones(1, 4).double() + 0.1 * data(d=4, seed=2).double()
    found = moments_of(x, y)
    low = LowRank(found, 1, False, x)
    matrix, constant = found.regression()
    _, _, v = torch.linalg.svd(x @ matrix + constant - y.mean(0), full_matrices=False)
    expected = y.mean(0) + (x @ matrix + constant - y.mean(0)) @ v[:1].T @ v[:1]
    torch.testing.assert_close(low.decode(low.encode(x)), expected, rtol=1e-6, atol=1e-6)


def test_random_directions_are_unit_rows_of_which_k_are_active_at_the_best_scale():
    x = data()
    found = RandomDirections(moments_of(x, x), 20, 3, 0, True, x)
    torch.testing.assert_close(found.W_dec.norm(dim=1), torch.ones(20))
    f = found.encode(x)
    assert set((f != 0).sum(1).tolist()) <= {0, 1, 2, 3}

    def error(gain):
        guess = (found.decode(f) - found.offset) * gain / found.gain + found.offset
        return float((x - guess).square().sum())

    assert error(found.gain) < min(error(0.99 * found.gain), error(1.01 * found.gain))
    again = RandomDirections(moments_of(x, x), 20, 3, 0, True, x)
    assert torch.equal(again.W_dec, found.W_dec)


def test_baselines_are_of_the_dictionarys_size():
    stand, x = Stand("resid_post.1"), torch.randn(200, 32)
    methods = beside(stand, moments_of(x, x), 4.4)
    assert list(methods) == ["dictionary", "random", "PCA"]
    assert len(methods["random"].W_dec) == 24
    assert methods["random"].k == len(methods["PCA"].W_dec) == 4
    zero = Constant(torch.zeros(32))
    assert torch.equal(zero.decode(zero.encode(x)), torch.zeros_like(x))


def test_the_tally_of_a_float64_sum_survives_one_enormous_activation():
    x = torch.randn(2, 5, 32)
    x[:, 0, 0] += 1e6
    tally = Tally(5, 32, 64)
    every = torch.ones(2, 5, dtype=torch.bool)

    class Off(Perfect):
        def decode(self, f):
            return f @ self.W_dec + 0.5

    tally.add(Off("resid_post.1"), x, x, every, every)
    y = x[:, 1:].reshape(-1, 32).double()
    expected = 1 - 8 * 32 * 0.25 / float((y - y.mean(0)).square().sum())
    assert tally.r2(1) == pytest.approx(expected, rel=1e-5)
    assert tally.r2(0) > 1 - 1e-6


def test_the_linear_share_of_an_error_is_found_on_tokens_not_fitted():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(12000, 8, generator=draw)
    linear, noise = x @ torch.randn(8, 8, generator=draw) * 0.3, torch.randn(12000, 8, generator=draw) * 0.5

    class Lossy(Stand):
        """Its reconstruction of x, looked up, misses a linear and another part."""

        def encode(self, f):
            return f

        def decode(self, f):
            return f - self.missing[self.at]

    error = ErrorModel(stand := Lossy("resid_post.1", d=8, size=8), 8, 8)
    stand.missing, held = linear + noise, slice(10000, 12000)
    for begin in range(0, 10000, 1000):
        stand.at = slice(begin, begin + 1000)
        error.add(x[stand.at], x[stand.at])
    guess, norm = error.predict(x[held])
    truth = (linear + noise)[held].double()
    r2 = 1 - float((truth - guess).square().sum() / (truth - truth.mean(0)).square().sum())
    share = float(linear.var(0).sum() / (linear.var(0).sum() + noise.var(0).sum()))
    assert r2 == pytest.approx(share, abs=0.02)
    assert norm.shape == (2000,)


def test_the_error_of_principal_components_is_linear_in_the_activation(model):
    tokens = torch.randint(4, VOCABULARY, (40, 12), generator=torch.Generator().manual_seed(1))
    found = dark_matter(model, Stand("resid_post.1"), tokens, fit_share=0.8)
    pca, ours = (found.loc[{"method": method}].to_series() for method in ("PCA", "dictionary"))
    assert pca["r2_error"] == pytest.approx(1, abs=1e-6)
    assert pca["nonlinear"] == pytest.approx(0, abs=1e-6)
    assert pca["ce_increase_linear"] == pytest.approx(pca["ce_increase"], abs=1e-4)
    assert pca["ce_increase_nonlinear"] == pytest.approx(0, abs=1e-4)
    assert ours["unexplained"] == pytest.approx(ours["linear"] + ours["nonlinear"])
    assert ours["r2_error"] < 1
    judged = judge(model, Stand("resid_post.1"), tokens, fit_share=0.8, skip=1)
    assert ours["unexplained"] == pytest.approx(1 - judged.value("r2"))
    assert ours["ce_increase"] == pytest.approx(judged.value("ce") - judged.scores.attrs["ce_clean"], abs=1e-4)


def test_logistic_regression_finds_the_minimum_of_its_loss():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 3)) * [1.0, 10.0, 0.1]
    y = (x[:, 0] + 0.1 * x[:, 1] + draw.normal(size=200) > 0).astype(float)

    def loss(w):
        z = (x - x.mean(0)) / x.std(0) @ w[:3] + w[3]
        return np.logaddexp(0, z).sum() - (y * z).sum() + 0.5 * (w[:3] ** 2).sum()

    best = minimize(loss, np.zeros(4), tol=1e-10).x
    weights, constant = logistic(torch.tensor(x), torch.tensor(y)[:, None])
    np.testing.assert_allclose(weights[:, 0].numpy(), best[:3] / x.std(0), rtol=1e-3)
    np.testing.assert_allclose(float(constant[0]), best[3] - (x.mean(0) / x.std(0) * best[:3]).sum(), rtol=1e-3)


def test_a_planted_feature_answers_its_question_and_noise_does_not():
    draw = torch.Generator().manual_seed(0)
    answers = torch.rand(400, generator=draw) < 0.5
    planted = (answers * (0.5 + torch.rand(400, generator=draw)))[:, None]
    noise = torch.randn(400, 1, generator=draw)
    assert probe_accuracy(planted[:200], answers[:200], planted[200:], answers[200:]) > 0.97
    assert 0.35 < probe_accuracy(noise[:200], answers[:200], noise[200:], answers[200:]) < 0.65


def test_absorption_is_told_from_firing_and_from_silence():
    decoder = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 1.0]])  # parent, child that absorbs, another
    direction = torch.tensor([2.0, 0, 0])
    features = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0.4, 1.0, 0], [0, 1.0, 0]])
    total = torch.tensor([1.0, 0.6, 1.0, 1.0, -1.0])
    found = absorbed(features, decoder, total, direction, [0])
    assert found.full.tolist() == [False, True, False, False, False]
    torch.testing.assert_close(found.fraction, torch.tensor([0.0, 1.0, 0.0, 0.6, 0.0]))


def test_a_split_goes_on_as_long_as_a_further_feature_helps():
    assert splits([0.9, 0.91, 0.99]) == 1
    assert splits([0.5, 0.6, 0.7, 0.71]) == 3
    assert splits([0.5, 0.6]) == 2
    assert f1(torch.tensor([True, True, False]), torch.tensor([True, False, True])) == pytest.approx(0.5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_words_behind_a_prompt_run_once_have_the_activations_of_the_whole_text(family):
    parts, reads, writes = parts_of(tiny(family)), Place("mlp_in", 1), Place("mlp_out", 2)
    prefix, words = TOKENS[:1], torch.tensor([5, 9, 20])
    read, written = _activations(parts, prefix, words, reads, writes, batch=2)
    whole = CleanRun(parts, torch.cat([prefix.expand(3, -1), words[:, None]], 1), reads, writes)
    torch.testing.assert_close(read, whole.read[:, -1])
    torch.testing.assert_close(written, whole.written[:, -1])


def test_dictionaries_of_this_package_give_what_their_forward_gives():
    from interp.features.architectures.topk import TopK
    from interp.features.architectures.transcoder import transcoder

    x = torch.randn(2, 5, 32)
    sae = TopK(32, 64, 4, reads=Place("resid_post", 1), scale=0.3)
    coder = transcoder("mlp_in.1", "mlp_out.1", 32, 64, skip=True, k=4, scale=0.3, scale_out=2.0)
    torch.nn.init.normal_(coder.W_skip)
    for made in (sae, coder):
        torch.testing.assert_close(decode(made, encode(made, x), x), made(x))
    found = judge(tiny("llama"), coder, TOKENS[:, :11].repeat(4, 1))
    assert found.value("ce_with_error") == found.scores.attrs["ce_clean"]


def test_what_makes_no_sense_is_refused(model):
    with pytest.raises(UsageError, match="two texts or more"):
        judge(model, Stand("resid_post.1"), TOKENS[:1])
    with pytest.raises(UsageError, match="skip must leave"):
        judge(model, Stand("resid_post.1"), TOKENS, skip=11)
    narrow = Stand("resid_post.1", d=16)
    narrow.d_in = 16
    with pytest.raises(UsageError, match="reads 16"):
        judge(model, narrow, TOKENS)
    with pytest.raises(UsageError, match="nothing can be put in at mlp_in"):
        judge(model, Stand("mlp_in.1"), TOKENS)
    with pytest.raises(UsageError, match="at which place"):
        judge(model, object(), TOKENS)
    with pytest.raises(UsageError, match="two letters"):
        absorption(model, Stand("resid_post.1"))


@pytest.mark.real_model
def test_on_smollm2_the_first_position_is_nearly_all_of_the_variance(smollm2):
    found = judge(smollm2, Stand("resid_post.15", d=576, size=256, k=32), "prose", n=4, length=48, batch=2)
    assert found.value("r2_with_first", "PCA") > 0.98
    assert found.value("r2_without_first", "PCA") < 0.9
    assert found.value("ce_recovered", "PCA") > found.value("ce_recovered", "random")


@pytest.mark.real_model
def test_on_smollm2_all_channels_answer_more_than_one_random_direction(smollm2):
    found = sparse_probing(
        smollm2, Stand("resid_post.8", d=576, size=256, k=32), ("prose", "code"), n=4, length=64, ks=(1,)
    )
    mean = found.mean(("kind", "k")).to_series()
    assert mean["all channels"] > 0.85
    assert mean["all channels"] > mean["random"] + 0.1


@pytest.mark.real_model
def test_on_smollm2_absorption_is_a_share_and_the_same_twice(smollm2):
    stand = Stand("resid_post.4", d=576, size=256, k=32)
    found, again = (absorption(smollm2, stand, words=500, least=8) for _ in range(2))
    np.testing.assert_array_equal(found.values, again.values)
    shares = found.sel(metric=["probe_f1", "sparse_f1", "full_absorption", "absorption_fraction"]).values
    assert np.nanmin(shares) >= 0
    assert np.nanmax(shares) <= 1


def test_where_ablation_costs_nothing_the_report_says_why_nothing_is_recovered():
    silent = tiny("llama")
    with torch.no_grad():
        silent.unembed.original_component.weight.zero_()
    found = judge(silent, Stand("resid_post.1"), TOKENS, batch=2)
    assert found.value("ce", "zero") == found.scores.attrs["ce_clean"]
    for metric, name in (("ce_recovered", "zero"), ("ce_recovered_mean", "mean")):
        assert np.isnan(found.value(metric))
        assert f"{name} ablation costs nothing (loss" in found.scores.attrs["undefined"][metric]
    assert "cross-entropy recovered undefined, as zero ablation costs nothing" in found.summary()
    assert "nan %" not in found.summary()


def test_where_ablation_costs_something_nothing_is_undefined(report):
    assert report.scores.attrs["undefined"] == {}
    assert "undefined" not in report.summary()


def test_activations_of_norm_zero_are_judged():
    silent = tiny("llama")
    with torch.no_grad():
        silent.blocks[1].mlp.out.original_component.weight.zero_()
    found = judge(silent, Stand("mlp_out.1"), TOKENS, batch=2)
    assert np.isnan(found.value("norm_ratio"))
    assert np.isnan(found.by_position.loc[{"method": "dictionary", "metric": "error"}]).all()
    assert found.value("ce", "zero") == found.scores.attrs["ce_clean"]
