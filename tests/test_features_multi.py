"""Crosscoders and cross-layer transcoders: recovery of ground truth, exact losses, resumption and files."""

import json
from functools import cache

import pytest
import torch
from families import VOCABULARY, tiny
from safetensors.torch import load_file, save_file

from interp.errors import InterpError, UsageError
from interp.features import Batch, Dictionary, GradientTopK, Place, TrainSettings, harvest, train
from interp.features.architectures.cross_layer import CrossLayerTranscoder, TanhJumpReLU, cross_layer_transcoder
from interp.features.architectures.crosscoder import (
    BatchTopKCrosscoder,
    Crosscoder,
    TopKCrosscoder,
    crosscoder,
    norms_by_place,
)
from interp.features.formats.circuit_tracer import load_cross_layer, save_circuit_tracer, save_cross_layer
from interp.features.judging.several import explained, judge_replacement, shuffled

D, FEATURES, WIDTH = 16, 32, 48
BOTH, FIRST, SECOND = range(20), range(20, 26), range(26, 32)
STEPS = 600
FIT = TrainSettings(lr=3e-3, dead_after=20_000)


@cache
def spread(n, seed):
    """Directions as far apart as random ones of this number get by repulsion."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(n, D, generator=generator), dim=1)
    for _ in range(300):
        cosines = rows @ rows.t() - torch.eye(n)
        rows = torch.nn.functional.normalize(rows - 0.1 * cosines.pow(3) @ rows, dim=1)
    return rows


def two_places():
    """What each feature writes at two places: other directions at each, and of some features nothing at one."""
    first, second = spread(FEATURES, 1).clone(), spread(FEATURES, 2).clone()
    first[list(SECOND)], second[list(FIRST)] = 0.0, 0.0
    return first, second


class Shared:
    """Batches of the two places' activations, made by the same sparse features; batch n depends on n alone."""

    def __init__(self, rows=512, fail_at=None):
        self.directions, self.rows, self.n, self.fail_at = torch.cat(two_places(), 1), rows, 0, fail_at

    def __iter__(self):
        return self

    def __next__(self):
        if self.n == self.fail_at:
            raise KeyboardInterrupt
        generator = torch.Generator().manual_seed(self.n)
        self.n += 1
        on = torch.rand(self.rows, FEATURES, generator=generator) < 2 / FEATURES
        return (on * (0.5 + torch.rand(self.rows, FEATURES, generator=generator))) @ self.directions * 4

    def state(self):
        return {"n": self.n}

    def restore(self, state):
        self.n = state["n"]


def cosines(dictionary):
    """At each place "feature latent": cosines of what features and latents write."""
    for true, rows in zip(two_places(), dictionary.W_dec.detach().split(D, 1), strict=True):
        yield torch.nn.functional.normalize(true, dim=1) @ torch.nn.functional.normalize(rows, dim=1).t()


CROSSCODERS = {
    "standard": (Crosscoder, {"l1": 1.0}),
    "topk": (TopKCrosscoder, {"k": 2}),
    "batch_topk": (BatchTopKCrosscoder, {"k": 2}),
}


@pytest.mark.parametrize("kind", list(CROSSCODERS))
def test_a_crosscoder_recovers_features_at_both_places_and_tells_shared_from_exclusive(kind):
    made, options = CROSSCODERS[kind]
    dictionary = made((D, D), WIDTH, **options)
    present = (torch.tensor([*BOTH, *FIRST]), torch.tensor([*BOTH, *SECOND]))
    for some, at in zip(cosines(dictionary), present, strict=True):
        assert float(some[at].max(1).values.mean()) < 0.7  # random directions do not look recovered
    train(dictionary, Shared(), STEPS, settings=FIT)
    first, second = cosines(dictionary)
    for some, at in zip((first, second), present, strict=True):
        assert float(some[at].max(1).values.mean()) > 0.95
    # one latent for both places: the latent that is best at the first is as good at the second
    shared = torch.tensor(list(BOTH))
    best = first[shared].argmax(1)
    assert float(second[shared, best].mean()) > 0.95
    share = norms_by_place(dictionary).detach()
    share = share[:, 0] / share.sum(1)
    assert float((share[best] - 0.5).abs().max()) < 0.15
    assert float(share[first[list(FIRST)].argmax(1)].min()) > 0.85
    assert float(share[second[list(SECOND)].argmax(1)].max()) < 0.15


def moved(dictionary, by=0.1):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter += by * torch.randn(parameter.shape, generator=generator)
        for name, buffer in dictionary.named_buffers():
            if name.endswith("threshold"):
                buffer.fill_(0.2)
    return dictionary


def test_the_l1_penalty_sums_the_decoder_norms_of_the_places():
    dictionary = moved(Crosscoder((3, 5), 12, l1=2.0)).double()
    x = torch.randn(20, 8, dtype=torch.float64)
    step = dictionary.step(Batch(x, x), sparsity=0.5)
    codes = torch.relu((x - dictionary.b_dec) @ dictionary.W_enc + dictionary.b_enc)
    norms = dictionary.W_dec[:, :3].norm(dim=1) + dictionary.W_dec[:, 3:].norm(dim=1)
    torch.testing.assert_close(step.terms["sparsity"], 0.5 * 2.0 * (codes * norms).sum() / 20)
    torch.testing.assert_close(norms_by_place(dictionary).sum(1), norms)


@pytest.mark.parametrize("made", [TopKCrosscoder, BatchTopKCrosscoder])
def test_decoder_norms_of_topk_crosscoders_add_up_to_one_and_the_gradient_keeps_them(made):
    dictionary = made((3, 5), 12, 4)
    torch.testing.assert_close(norms_by_place(dictionary).sum(1), torch.ones(12))
    x = torch.randn(20, 8)
    dictionary.step(Batch(x, x)).loss.backward()
    dictionary.project_gradient()
    before = norms_by_place(dictionary).sum(1).detach()
    step = 1e-4 * dictionary.W_dec.grad
    with torch.no_grad():
        dictionary.W_dec += step
    assert float((norms_by_place(dictionary).detach().sum(1) - before).abs().max()) < 1e-2 * float(
        step.norm(dim=1).max()
    )


def test_a_place_of_another_scale_counts_as_much():
    places = ["resid_post.1", "resid_post.2"]
    plain = crosscoder(places, 4, 10, architecture="topk", k=3)
    scaled = crosscoder(places, 4, 10, architecture="topk", k=3, scale=[1.0, 0.01])
    x = torch.randn(6, 8)
    units = torch.tensor([1.0] * 4 + [0.01] * 4)
    torch.testing.assert_close(scaled.encode(x / units), plain.encode(x))
    torch.testing.assert_close(scaled(x / units), plain(x) / units)


# Cross-layer transcoders


def cross_layer(kind, n=3, d=6, width=10, **options):
    if "topk" in kind:
        options = {"k": 3, **options}
    return moved(cross_layer_transcoder(range(n), d, width, kind=kind, **options)).double()


def dense(clt, x):
    """The reconstruction, layer by layer as the paper writes it."""
    inputs, out = x.split(6, 1), []
    codes = [clt.of(at).encode(piece) for at, piece in enumerate(inputs)]
    for m in range(len(inputs)):
        written = sum(codes[at] @ clt.decoder(at, m) for at in range(m + 1))
        out.append(written + clt.b_dec[6 * m : 6 * m + 6])
    return torch.cat(out, 1), codes


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["tanh", "jumprelu", "standard", "topk"])
def test_a_cross_layer_transcoder_has_the_loss_and_gradients_of_the_formula(kind, share, monkeypatch):
    monkeypatch.setattr("interp.features.architectures.sparse.DENSE_SHARE", share)
    clt = cross_layer(kind)
    x, y = (torch.randn(20, 18, dtype=torch.float64) for _ in range(2))
    step = clt.step(Batch(x, y))
    out, codes = dense(clt, x)
    torch.testing.assert_close(clt(x), out)
    torch.testing.assert_close(clt.encode(x), torch.cat(codes, 1))
    torch.testing.assert_close(step.terms["mse"], (y - out).square().sum(1).mean())
    torch.testing.assert_close(step.codes.dense(30).double() * (step.codes.dense(30) > 0), torch.cat(codes, 1).detach())
    of_step = torch.autograd.grad(step.terms["mse"], list(clt.parameters()), allow_unused=True)
    of_formula = torch.autograd.grad((y - out).square().sum(1).mean(), list(clt.parameters()), allow_unused=True)
    for (name, _), a, b in zip(clt.named_parameters(), of_step, of_formula, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, msg=lambda m, n=name: f"{n}: {m}")


def test_the_tanh_penalty_is_the_papers():
    clt = cross_layer("tanh", l0=3.0, c=2.0, revive=0.5, bandwidth=1e-6)
    x = torch.randn(20, 18, dtype=torch.float64)
    dead = torch.zeros(30, dtype=torch.bool)
    dead[[2, 25]] = True
    terms = clt.step(Batch(x, x), sparsity=0.5, dead=dead).terms
    _, codes = dense(clt, x)
    norms = [clt.of(at).W_dec.norm(dim=1) for at in range(3)]
    expected = sum(torch.tanh(2.0 * f * norm).sum() for f, norm in zip(codes, norms, strict=True)) * 3.0 * 0.5 / 20
    torch.testing.assert_close(terms["sparsity"], expected)
    below = 0.0
    for at, latent in ((0, 2), (2, 5)):
        layer = clt.of(at)
        z = x[:, 6 * at : 6 * at + 6] @ layer.W_enc[:, latent] + layer.b_enc[latent]
        below = below + (torch.relu(layer.threshold[latent].relu() - z) * norms[at][latent]).sum()
    torch.testing.assert_close(terms["revive"], 0.5 * below / 20)


class Passed(Shared):
    """A feature of layer 0's input that both layers' MLPs write, in other directions; the second layer sees it too."""

    def __next__(self):
        if self.n == self.fail_at:
            raise KeyboardInterrupt
        generator = torch.Generator().manual_seed(self.n)
        self.n += 1
        on = torch.rand(self.rows, 8, generator=generator) < 1 / 8
        strength = on * (0.5 + torch.rand(self.rows, 8, generator=generator)) * 4
        read, first, second = (spread(16, seed)[:8] for seed in (3, 4, 5))
        x = strength @ read
        return {"mlp_in.0": x, "mlp_in.1": x, "mlp_out.0": strength @ first, "mlp_out.1": strength @ second}


def active(batches, *dictionaries):
    """Mean number of active latents of all dictionaries together, per active feature."""
    item = next(batches)
    x = torch.cat([item["mlp_in.0"], item["mlp_in.1"]], 1)
    inputs = (x,) if len(dictionaries) == 1 else x.split(D, 1)
    found = sum((d.encode(one) > 0).sum() for d, one in zip(dictionaries, inputs, strict=True))
    features = (item["mlp_out.0"] @ torch.linalg.pinv(spread(16, 4)[:8]) > 0.5).sum()
    return float(found / features)


def test_a_feature_written_at_two_layers_takes_one_latent_of_a_cross_layer_transcoder_and_two_of_single_ones():
    options = {"l0": 4.0, "c": 1.0, "initial_threshold": 0.5, "revive": 0.1}
    clt = cross_layer_transcoder(range(2), D, 16, **options)
    assert train(clt, Passed(), STEPS, settings=FIT).metrics[-1]["r2"] > 0.95
    single = []
    for layer in range(2):
        places = {"reads": Place("mlp_in", layer), "writes": Place("mlp_out", layer)}
        single.append(TanhJumpReLU(D, 16, **options, **places))
        assert train(single[-1], Passed(), STEPS, settings=FIT).metrics[-1]["r2"] > 0.95
    assert active(Passed(), clt) == pytest.approx(1.0, abs=0.2)
    assert active(Passed(), *single) == pytest.approx(2.0, abs=0.2)
    # nearly all of it is the first layer's, and the latent that writes a feature there writes it at the second, too
    item = next(Passed())
    firings = (clt.encode(torch.cat([item["mlp_in.0"], item["mlp_in.1"]], 1)) > 0).sum(0)
    assert float(firings[16:].sum() / firings.sum()) < 0.15
    here, there = (torch.nn.functional.normalize(clt.decoder(0, at).detach(), dim=1) for at in range(2))
    cosine = here @ spread(16, 4)[:8].t() * (firings[:16, None] > 0)
    assert float(cosine.max(0).values.mean()) > 0.95
    assert float((there @ spread(16, 5)[:8].t())[cosine.argmax(0), range(8)].mean()) > 0.95


# Training, files, refusals


def every():
    """One of each, small, with the batches that train it."""
    pair = {"reads": (Place("resid_post", 0), Place("resid_post", 1))}
    yield lambda seed=0: Crosscoder((D, D), 40, seed=seed, scale=(1.0, 0.5), **pair), Shared
    yield lambda seed=0: TopKCrosscoder((D, D), 40, 3, seed=seed, scale=(1.0, 0.5)), Shared
    yield lambda seed=0: BatchTopKCrosscoder((D, D), 40, 3, seed=seed), Shared
    for kind, options in {"tanh": {"revive": 0.1}, "standard": {}, "topk": {"k": 3}, "batch_topk": {"k": 3}}.items():

        def made(seed=0, kind=kind, options=options):
            return cross_layer_transcoder(
                range(2), D, 20, kind=kind, seed=seed, scale=0.5, scale_out=[0.25, 2.0], **options
            )

        yield made, Passed


@pytest.mark.parametrize("number", range(7))
def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one_and_is_saved(number, tmp_path):
    made, batches = list(every())[number]
    settings = TrainSettings(checkpoint_every=7, log_every=5, dead_after=3_000)
    whole, killed, resumed = made(), made(), made(seed=5)
    train(whole, batches(), 30, settings=settings)
    with pytest.raises(KeyboardInterrupt):
        train(killed, batches(fail_at=18), 30, settings=settings, directory=tmp_path)
    run = train(resumed, batches(), 30, settings=settings, directory=tmp_path)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    assert [line["step"] for line in run.metrics] == [5, 10, 15, 20, 25, 30]
    loaded, x = Dictionary.load(tmp_path), torch.randn(9, 2 * D)
    assert type(loaded) is type(resumed)
    assert loaded.settings() == resumed.settings()
    assert not loaded.training
    torch.testing.assert_close(loaded(x), resumed(x), rtol=0, atol=0)
    names = {"cfg.json", "sae_weights.safetensors", "checkpoint.safetensors", "metrics.jsonl"}
    assert {file.name for file in tmp_path.iterdir()} == names


def test_l1_crosscoders_are_resampled_and_cross_layer_transcoders_say_that_they_are_not():
    settings = TrainSettings(resample_every=5, dead_after=1_000)
    dictionary = Crosscoder((D, D), 40)
    with torch.no_grad():
        dictionary.b_enc[20:] = -50.0
    train(dictionary, Shared(), 12, settings=settings)
    assert float(dictionary.b_enc[20:].detach().min()) > -1
    with pytest.raises(UsageError, match="can't be resampled"):
        train(cross_layer_transcoder(range(2), D, 20), Passed(), 12, settings=settings)


def as_circuit_tracer(folder, x):
    """What circuit-tracer computes from the files: its ``encode`` and ``decode``, "layer token d_model"."""
    n = len(x)
    encoders = [load_file(folder / f"W_enc_{i}.safetensors") for i in range(n)]
    out = torch.stack([encoders[i][f"b_dec_{i}"].expand(x.shape[1], -1) for i in range(n)]).clone()
    for i, e in enumerate(encoders):
        f = x[i] @ e[f"W_enc_{i}"].T + e[f"b_enc_{i}"]
        f = f * (f > e[f"threshold_{i}"]) if f"threshold_{i}" in e else torch.relu(f)
        decoder = load_file(folder / f"W_dec_{i}.safetensors")[f"W_dec_{i}"]
        assert decoder.shape == (f.shape[1], n - i, x.shape[2])
        out[i:] += torch.einsum("tf,fld->ltd", f, decoder)
    return out


@pytest.mark.parametrize("kind", ["tanh", "jumprelu", "standard", "batch_topk"])
def test_circuit_tracers_files_give_equal_outputs(kind, tmp_path):
    options = {"k": 3} if "topk" in kind else {}
    clt = cross_layer_transcoder(
        range(3), 6, 10, kind=kind, reads="resid_mid", scale=[0.5, 1.0, 2.0], scale_out=[3.0, 1.0, 0.5], **options
    )
    clt = moved(clt).eval()
    save_cross_layer(clt, tmp_path, "smollm2")
    x = torch.randn(7, 18)
    layers = x.unflatten(1, (3, 6)).transpose(0, 1)
    torch.testing.assert_close(as_circuit_tracer(tmp_path, layers).transpose(0, 1).flatten(1), clt(x))
    loaded = load_cross_layer(tmp_path)
    torch.testing.assert_close(loaded(x), clt(x))
    torch.testing.assert_close(loaded.encode(x), clt.encode(x))
    assert loaded.reads == clt.reads
    expected = {f"W_{side}_{i}.safetensors" for side in ("enc", "dec") for i in range(3)} | {"config.yaml"}
    assert {file.name for file in tmp_path.iterdir()} == expected
    lines = (tmp_path / "config.yaml").read_text().splitlines()
    assert lines[1:] == [
        "model_kind: cross_layer_transcoder",
        'feature_input_hook: "hook_resid_mid"',
        'feature_output_hook: "hook_mlp_out"',
    ]


def test_what_does_not_fit_the_files_is_named(tmp_path):
    with pytest.raises(UsageError, match="not TopK"):
        save_cross_layer(cross_layer_transcoder(range(2), 6, 10, kind="topk", k=2), tmp_path)
    with pytest.raises(UsageError, match="use save_cross_layer"):
        save_circuit_tracer(cross_layer_transcoder(range(2), 6, 10), tmp_path / "x.safetensors")
    with pytest.raises(InterpError, match=r"no file .*W_enc_0"):
        load_cross_layer(tmp_path)
    save_cross_layer(cross_layer_transcoder(range(2), 6, 10), tmp_path)
    (tmp_path / "W_dec_1.safetensors").unlink()
    with pytest.raises(InterpError, match=r"no file .*W_dec_1"):
        load_cross_layer(tmp_path)
    save_file({"W_dec_1": torch.zeros(10, 2, 6)}, tmp_path / "W_dec_1.safetensors")
    with pytest.raises(InterpError, match=r"layers\.1\.W_dec .* has shape \(10, 12\), expected \(10, 6\)"):
        load_cross_layer(tmp_path)
    folder = tmp_path / "own"
    Crosscoder((3, 3), 10).save(folder)
    cfg = json.loads((folder / "cfg.json").read_text())
    for wrong, error in (({"format": "interp.dictionary/9"}, UsageError), ({"settings": {}}, InterpError)):
        (folder / "cfg.json").write_text(json.dumps(cfg | wrong))
        with pytest.raises(error):
            Dictionary.load(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: crosscoder(["resid_post.1", "resid_post.1"], 4, 8), "different places"),
        (lambda: crosscoder(["resid_post.1", "resid_post.2"], [4], 8), "2 places, but there are 1 widths"),
        (lambda: crosscoder(["resid_post.1"], 4, 8, architecture="gated"), "architecture of a crosscoder"),
        (lambda: crosscoder(["resid_post.1", "resid_post.2"], 4, 8, scale=[1.0, 2.0, 3.0]), "3 scales for 2 places"),
        (lambda: Crosscoder((4, 0), 8), "d_in must be at least 1"),
        (lambda: cross_layer_transcoder([1, 0], 4, 8), "layers must increase"),
        (lambda: cross_layer_transcoder([0], 4, 8, kind="tan"), "did you mean"),
        (lambda: CrossLayerTranscoder((4, 4), 9), "9 latents can't be shared out"),
        (lambda: CrossLayerTranscoder((4, 4), 8, d_out=(4,)), "reads 2 layers and writes 1"),
        (lambda: CrossLayerTranscoder((4, 4), 8, skip=True), "no skip"),
        (lambda: Crosscoder((4, 4), 8).encode(torch.zeros(1, 7)), "7 wide, but this dictionary reads 8"),
        (lambda: train(cross_layer_transcoder([0], 4, 8), [{"mlp_in.0": torch.zeros(2, 4)}], 1), r"not mlp_out\.0"),
    ],
)
def test_senseless_arguments_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()


# Judging


def test_explained_variance_is_that_of_each_place():
    dictionary = TopKCrosscoder((D, D), WIDTH, 2, scale=(1.0, 0.1))
    train(dictionary, Shared(), 200, settings=FIT)
    batches = [batch for _, batch in zip(range(5), Shared(), strict=False)]
    found = explained(dictionary, batches, fit=2)
    x = torch.cat(batches[2:])
    for at, (true, guess) in enumerate(zip(x.split(D, 1), dictionary(x).detach().split(D, 1), strict=True)):
        r2 = 1 - (true - guess).square().sum() / (true - true.mean(0)).square().sum()
        assert float(found.loc[{"method": "dictionary"}][at]) == pytest.approx(float(r2), abs=1e-5)
    assert list(found["node"].values) == ["place 0", "place 1"]
    assert float(found.loc[{"method": "dictionary"}].min()) > float(found.loc[{"method": "shuffled"}].max()) + 0.3
    with pytest.raises(UsageError, match="give more"):
        explained(dictionary, batches, fit=5)


TOKENS = torch.randint(4, VOCABULARY, (12, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.mark.parametrize("reads", ["mlp_in", "resid_mid"])
def test_replacing_the_mlps_is_what_the_bridges_hooks_do(model, reads):
    n = model.cfg.n_layers
    clt = cross_layer_transcoder(range(n), 32, 20, kind="standard", reads=reads, scale=0.5, scale_out=2.0)
    clt = moved(clt, 0.02).eval()
    found = judge_replacement(model, clt, TOKENS, skip=2)
    read = {}

    def keep(at):
        def hook(x, hook):
            read[at] = x

        return hook

    def put(at):
        def hook(x, hook):
            codes = [clt.of(layer).encode(read[layer] * 0.5) for layer in range(at + 1)]
            new = sum(f @ clt.decoder(layer, at) for layer, f in enumerate(codes)) + clt.b_dec[32 * at : 32 * at + 32]
            return torch.cat([x[:, :2], new[:, 2:] / 2.0], 1)

        return hook

    hooks = [(place.hook, keep(at)) for at, place in enumerate(clt.reads)]
    hooks += [(place.hook, put(at)) for at, place in enumerate(clt.writes)]
    held = TOKENS[6:]
    clean, there = (
        torch.log_softmax(model.run_with_hooks(held, fwd_hooks=some)[:, 2:-1].float(), -1) for some in ([], hooks)
    )
    ce = -there.gather(-1, held[:, 3:, None]).mean()
    assert float(found.loc[{"method": "dictionary", "metric": "ce"}]) == pytest.approx(float(ce.detach()), rel=1e-4)
    kl = (clean.exp() * (clean - there)).sum(-1).mean()
    assert float(found.loc[{"method": "dictionary", "metric": "kl"}]) == pytest.approx(
        float(kl.detach()), rel=1e-3, abs=1e-6
    )


def test_a_trained_cross_layer_transcoder_replaces_the_mlps_better_than_its_controls(model):
    layers = range(model.cfg.n_layers)
    sites = [f"{site}.{layer}" for site in ("mlp_in", "mlp_out") for layer in layers]
    store = harvest(model, sites, TOKENS, length=16)
    scales = [[store.scale(place) for place in sites[at * len(layers) :][: len(layers)]] for at in range(2)]
    clt = cross_layer_transcoder(layers, 32, 64, kind="batch_topk", k=8, scale=scales[0], scale_out=scales[1])
    train(clt, store.batches(96, sites, epochs=None), 150, settings=TrainSettings(lr=3e-3))
    kl = judge_replacement(model, clt, TOKENS).loc[{"metric": "kl"}]
    assert float(kl.loc[{"method": "dictionary"}]) < 0.5 * float(kl.loc[{"method": "mean"}])
    assert float(kl.loc[{"method": "dictionary"}]) < 0.5 * float(kl.loc[{"method": "shuffled"}])
    r2 = explained(clt, store.batches(64, sites), fit=1)
    assert list(r2["node"].values) == [f"mlp_out.{layer}" for layer in layers]
    assert float(r2.loc[{"method": "dictionary"}].min()) > float(r2.loc[{"method": "shuffled"}].max())


def test_the_control_has_the_same_codes_and_other_rows():
    for dictionary in (TopKCrosscoder((D, D), 40, 3), cross_layer_transcoder(range(2), D, 20)):
        x, control = torch.randn(5, 2 * D), shuffled(dictionary)
        torch.testing.assert_close(control.encode(x), dictionary.encode(x))
        assert not torch.allclose(control(x), dictionary(x))


def test_a_transcoder_that_does_not_fit_the_model_is_refused(model):
    for clt, message in [
        (cross_layer_transcoder(range(2), 16, 8), "16 numbers at mlp_in.0, where this model has 32"),
        (cross_layer_transcoder(range(2), 32, 8, reads="resid_post"), "must read mlp_in or resid_mid"),
        (CrossLayerTranscoder((32, 32), 8), "must say at which places"),
    ]:
        with pytest.raises(UsageError, match=message):
            judge_replacement(model, clt, TOKENS)


# The gradient's part in the choice of latents


@pytest.mark.parametrize("normalise", [False, True])
def test_the_score_of_gradient_topk_is_the_papers_by_hand(normalise):
    dictionary = GradientTopK(2, 3, 1, beta=2.0, normalise_gradient=normalise)
    with torch.no_grad():
        dictionary.W_enc.copy_(torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]]))
        dictionary.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]))
        dictionary.b_enc.copy_(torch.tensor([0.0, 0.1, 0.0]))
    x, gradient = torch.tensor([[1.0, 0.6], [1.0, 0.6]]), torch.tensor([[0.0, -1.0], [3.0, 0.0]])
    # z = (1, 0.7, -1); |W_dec g| = (0, 0.8, 1) and (3, 1.8, 0); mean size of g: (1 + 3) / 2 / sqrt 2
    size = 2 / 2**0.5 if normalise else 1.0
    by_hand = [[1 + 0, 0.7 + 2 * 0.7 * 0.8 / size, 0], [1 + 2 * 3 / size, 0.7 + 2 * 0.7 * 1.8 / size, 0]]
    effect = (gradient / size @ dictionary.W_dec.t()).abs()
    torch.testing.assert_close(dictionary.score(torch.tensor([1.0, 0.7, -1.0]), effect), torch.tensor(by_hand))
    step = dictionary.step(Batch(x, x, gradient))
    assert step.codes.pattern.columns.tolist() == [1, 0]  # TopK alone chooses latent 0 both times
    torch.testing.assert_close(step.codes.values, torch.tensor([0.7, 1.0]))  # codes are not multiplied
    torch.testing.assert_close(dictionary.encode(x), torch.tensor([[1.0, 0, 0], [1.0, 0, 0]]))
