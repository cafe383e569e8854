"""Dictionaries on disk: SAELens's layout and circuit-tracer's files."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp.errors import InterpError, UsageError
from interp.features import (
    ARCHITECTURES,
    Dictionary,
    JumpReLU,
    Place,
    Standard,
    TopK,
    ablate,
    load_circuit_tracer,
    save_circuit_tracer,
    steer,
    train,
    transcoder,
)
from interp.features.judging.splice import rebuilt, scale_out
from interp.tracing import Transcoders

D_IN, D_SAE, K = 12, 40, 4
PLACE = Place("resid_post", 3)


def randomised(dictionary):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        if "threshold" in dict(dictionary.named_buffers()):
            dictionary.threshold.fill_(0.5)
    return dictionary.eval()


def made(architecture, **shared):
    options = {"k": K} if "top" in architecture or architecture == "matryoshka" else {}
    return randomised(ARCHITECTURES[architecture](D_IN, D_SAE, **options, **shared))


def activations():
    return torch.randn(50, D_IN, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_a_saved_dictionary_gives_equal_outputs(architecture, scale, tmp_path):
    dictionary = made(architecture, reads=PLACE, scale=scale)
    dictionary.save(tmp_path, model_name="smollm2")
    loaded = Dictionary.load(tmp_path)
    x = activations()
    torch.testing.assert_close(loaded.encode(x), dictionary.encode(x))
    torch.testing.assert_close(loaded(x), dictionary(x))
    assert loaded.reads == loaded.writes == PLACE
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cfg.json", "sae_weights.safetensors"]


EXPECTED = {
    "standard": ("standard", {"W_enc", "W_dec", "b_enc", "b_dec"}),
    "topk": ("topk", {"W_enc", "W_dec", "b_enc", "b_dec"}),
    "batch_topk": ("jumprelu", {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}),
    "matryoshka": ("jumprelu", {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}),
    "jumprelu": ("jumprelu", {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}),
    "gated": ("gated", {"W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"}),
}


@pytest.mark.parametrize("architecture", list(EXPECTED))
def test_files_have_the_fields_and_tensors_of_saelens(architecture, tmp_path):
    made(architecture, reads=PLACE).save(tmp_path, model_name="smollm2")
    cfg, tensors = json.loads((tmp_path / "cfg.json").read_text()), load_file(tmp_path / "sae_weights.safetensors")
    name, names = EXPECTED[architecture]
    assert cfg["architecture"] == name
    assert set(tensors) == names
    assert tensors["W_enc"].shape == (D_IN, D_SAE)
    assert tensors["W_dec"].shape == (D_SAE, D_IN)
    for field in ("d_in", "d_sae", "dtype", "device", "normalize_activations", "reshape_activations"):
        assert field in cfg
    assert cfg["apply_b_dec_to_input"] is True
    assert cfg["metadata"]["hook_name"] == "blocks.3.hook_resid_post"
    assert cfg["metadata"]["model_name"] == "smollm2"
    assert int(cfg["metadata"]["sae_lens_version"].split(".")[0]) >= 6  # older layouts are rewritten on reading
    if name == "jumprelu":
        assert tensors["threshold"].shape == (D_SAE,)
    if architecture == "topk":
        assert (cfg["k"], cfg["rescale_acts_by_decoder_norm"]) == (K, False)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("architecture", ["standard", "topk", "batch_topk", "jumprelu", "gated"])
def test_a_saved_transcoder_gives_equal_outputs(architecture, skip, tmp_path):
    options = {"k": K} if "top" in architecture else {}
    dictionary = transcoder(
        "mlp_in.2",
        "mlp_out.2",
        D_IN,
        D_SAE,
        d_out=7,
        architecture=architecture,
        skip=skip,
        scale=0.5,
        scale_out=3.0,
        **options,
    )
    dictionary = randomised(dictionary)
    dictionary.save(tmp_path)
    loaded = Dictionary.load(tmp_path)
    torch.testing.assert_close(loaded(activations()), dictionary(activations()))
    assert (loaded.reads, loaded.writes) == (Place("mlp_in", 2), Place("mlp_out", 2))
    name = json.loads((tmp_path / "cfg.json").read_text())["architecture"]
    kind = "skip_transcoder" if skip else "transcoder"
    of_base = {"standard": kind, "batch_topk": f"jumprelu_{kind}"}
    assert name == of_base.get(architecture, f"{architecture}_{kind}")


def written_by_hand(directory, architecture, tensors, **fields):
    cfg = {"architecture": architecture, "d_in": D_IN, "d_sae": D_SAE, "metadata": {"hook_name": "odd"}, **fields}
    (directory / "cfg.json").write_text(json.dumps(cfg))
    save_file(tensors, directory / "sae_weights.safetensors")


def weights():
    generator = torch.Generator().manual_seed(2)
    shapes = {"W_enc": (D_IN, D_SAE), "W_dec": (D_SAE, D_IN), "b_enc": (D_SAE,), "b_dec": (D_IN,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_an_autoencoder_that_does_not_subtract_its_decoder_bias_is_read(tmp_path):
    w = weights() | {"threshold": torch.rand(D_SAE)}
    written_by_hand(tmp_path, "jumprelu", w, apply_b_dec_to_input=False)
    pre = activations() @ w["W_enc"] + w["b_enc"]
    codes = torch.relu(pre) * (pre > w["threshold"])
    loaded = Dictionary.load(tmp_path)
    torch.testing.assert_close(loaded(activations()), codes @ w["W_dec"] + w["b_dec"], rtol=1e-4, atol=1e-4)
    assert loaded.reads is None


def test_topk_that_counts_decoder_norms_is_read(tmp_path):
    w = weights()
    written_by_hand(tmp_path, "topk", w, k=K, rescale_acts_by_decoder_norm=True)
    norms = w["W_dec"].norm(dim=1)
    pre = ((activations() - w["b_dec"]) @ w["W_enc"] + w["b_enc"]) * norms
    top = pre.topk(K, dim=1)
    codes = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    expected = (codes / norms) @ w["W_dec"] + w["b_dec"]
    torch.testing.assert_close(Dictionary.load(tmp_path)(activations()), expected, rtol=1e-4, atol=1e-4)


def normalised_by_hand(x, how):
    """What is encoded, and what a reconstruction of it is multiplied by and shifted by (SAELens 6.54, saes/sae.py)."""
    if how == "layer_norm":
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().sum(-1, keepdim=True) / (x.shape[-1] - 1)).sqrt()
        return centred / (deviation + 1e-5), deviation, x.mean(-1, keepdim=True)
    size = x.square().sum(-1, keepdim=True).sqrt() / x.shape[-1] ** 0.5
    return x / size, size, 0.0


@pytest.mark.parametrize("subtracts", [True, False])
@pytest.mark.parametrize("how", ["layer_norm", "constant_norm_rescale"])
def test_normalised_activations_are_encoded_and_get_their_size_back(how, subtracts, tmp_path):
    w, x = weights(), 3 * activations() + 0.7
    written_by_hand(tmp_path, "standard", w, normalize_activations=how, apply_b_dec_to_input=subtracts)
    z, size, centre = normalised_by_hand(x, how)
    codes = torch.relu((z - w["b_dec"] * subtracts) @ w["W_enc"] + w["b_enc"])
    expected = (codes @ w["W_dec"] + w["b_dec"]) * size + centre
    loaded = Dictionary.load(tmp_path)
    torch.testing.assert_close(loaded.encode(x), codes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loaded(x), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(rebuilt(loaded, x[None])[0], loaded(x))
    with pytest.raises(UsageError, match=rf"normalises each activation \({how}\).* decode\(codes, x\)"):
        loaded.decode(codes)
    loaded.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "cfg.json").read_text())["normalize_activations"] == how
    again = Dictionary.load(tmp_path / "again")
    assert torch.equal(again(x), loaded(x))


@pytest.mark.parametrize("how", ["layer_norm", "constant_norm_rescale"])
def test_a_transcoder_normalises_what_it_reads_and_not_what_it_writes(how, tmp_path):
    w, x = weights(), 3 * activations() + 0.7
    written_by_hand(tmp_path, "transcoder", w, normalize_activations=how, d_out=D_IN)
    codes = torch.relu(normalised_by_hand(x, how)[0] @ w["W_enc"] + w["b_enc"])
    expected = codes @ w["W_dec"] + w["b_dec"]
    loaded = Dictionary.load(tmp_path)
    torch.testing.assert_close(loaded(x), expected, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(loaded.decode(codes), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("said_by", ["cfg", "scaler", "argument"])
def test_a_factor_of_all_activations_is_folded(said_by, tmp_path):
    w, x, factor = weights(), activations(), 0.37
    fields = {"norm_scaling_factor": factor} if said_by == "cfg" else {}
    written_by_hand(tmp_path, "standard", w, normalize_activations="expected_average_only_in", **fields)
    if said_by == "scaler":
        (tmp_path / "activation_scaler.json").write_text(json.dumps({"scaling_factor": factor}))
    codes = torch.relu((factor * x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
    loaded = Dictionary.load(tmp_path, factor if said_by == "argument" else None)
    torch.testing.assert_close(loaded.encode(x), codes, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loaded(x), (codes @ w["W_dec"] + w["b_dec"]) / factor, rtol=1e-4, atol=1e-3)
    loaded.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "cfg.json").read_text())["normalize_activations"] == "none"


@pytest.mark.parametrize("factor", [None, "1", 0, -1.0, float("nan"), True])
def test_a_factor_that_is_not_known_is_asked_for(factor, tmp_path):
    fields = {} if factor is None else {"norm_scaling_factor": factor}
    written_by_hand(tmp_path, "standard", weights(), normalize_activations="expected_average_only_in", **fields)
    with pytest.raises(UsageError, match=r"load\(..., norm_scaling_factor=...\)"):
        Dictionary.load(tmp_path)


def test_an_edit_of_a_feature_has_the_size_of_the_activation(tmp_path):
    w, x = weights(), 3 * activations() + 0.7
    written_by_hand(tmp_path, "standard", w, normalize_activations="layer_norm")
    loaded = Dictionary.load(tmp_path)
    codes, (_, size, _) = loaded.encode(x), normalised_by_hand(x, "layer_norm")
    for edit, change in ((ablate(loaded, 3), -codes[:, [3]]), (steer(loaded, 3, 2.0), 2.0)):
        assert edit.needs_reading
        expected = x + change * w["W_dec"][3] * size
        torch.testing.assert_close(edit(x[None], x[None])[0], expected, rtol=1e-4, atol=1e-3)


def test_what_takes_a_feature_for_one_row_refuses_a_dictionary_that_normalises(tmp_path):
    written_by_hand(tmp_path, "standard", weights(), normalize_activations="layer_norm")
    loaded = Dictionary.load(tmp_path)
    with pytest.raises(UsageError, match=r"normalises each activation \(layer_norm\), so that what a feature writes"):
        scale_out(loaded)
    with pytest.raises(UsageError, match="is read, not trained"):
        train(loaded, [activations()], 1)
    written_by_hand(tmp_path, "transcoder", weights(), normalize_activations="layer_norm", d_out=D_IN)
    loaded = Dictionary.load(tmp_path)
    with pytest.raises(UsageError, match="no place for a normalisation"):
        save_circuit_tracer(loaded, tmp_path / "layer_0.safetensors")
    loaded.reads, loaded.writes = Place("mlp_in", 1), Place("mlp_out", 1)
    with pytest.raises(UsageError, match=r"layer 1 normalises what it reads \(layer_norm\)"):
        Transcoders({1: loaded}, others="neurons")


def test_what_can_not_be_read_is_named(tmp_path):
    with pytest.raises(InterpError, match=r"cfg\.json is missing"):
        Dictionary.load(tmp_path)
    written_by_hand(tmp_path, "temporal", weights())
    with pytest.raises(UsageError, match="unknown architecture of a saved dictionary 'temporal'"):
        Dictionary.load(tmp_path)
    written_by_hand(tmp_path, "standard", weights(), normalize_activations="covariance_whitening")
    with pytest.raises(UsageError, match="unknown normalize_activations 'covariance_whitening'"):
        Dictionary.load(tmp_path)
    written_by_hand(tmp_path, "jumprelu", weights())
    with pytest.raises(InterpError, match="lacks the tensor threshold"):
        Dictionary.load(tmp_path)
    written_by_hand(tmp_path, "standard", weights() | {"b_enc": torch.zeros(3)})
    with pytest.raises(InterpError, match=r"b_enc .* has shape \(3,\), expected \(40,\)"):
        Dictionary.load(tmp_path)
    (tmp_path / "sae_weights.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InterpError, match="damaged"):
        Dictionary.load(tmp_path)


def test_a_class_loads_only_its_own_architecture(tmp_path):
    made("topk").save(tmp_path)
    assert isinstance(TopK.load(tmp_path), TopK)
    with pytest.raises(UsageError, match="holds a topk dictionary, not standard"):
        Standard.load(tmp_path)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "batch_topk"])
def test_circuit_tracer_files_give_equal_outputs(architecture, skip, tmp_path):
    options = {"k": K} if "top" in architecture else {}
    dictionary = randomised(
        transcoder("resid_mid.1", "mlp_out.1", D_IN, D_SAE, architecture=architecture, skip=skip, scale=2.0, **options)
    )
    path = tmp_path / "layer_1.safetensors"
    save_circuit_tracer(dictionary, path)
    loaded = load_circuit_tracer(path, "resid_mid.1", "mlp_out.1")
    torch.testing.assert_close(loaded(activations()), dictionary(activations()))
    tensors = load_file(path)
    assert tensors["W_enc"].shape == (D_SAE, D_IN)
    names = {"W_enc", "W_dec", "b_enc", "b_dec"} | ({"W_skip"} if skip else set())
    extra = {"topk": {"k"}, "standard": set()}.get(architecture, {"activation_function.threshold"})
    assert set(tensors) == names | extra


def test_circuit_tracer_files_hold_transcoders_only(tmp_path):
    with pytest.raises(UsageError, match="not a sparse autoencoder"):
        save_circuit_tracer(JumpReLU(4, 8), tmp_path / "x.safetensors")
    with pytest.raises(InterpError, match="no file"):
        load_circuit_tracer(tmp_path / "x.safetensors", "mlp_in.0", "mlp_out.0")
