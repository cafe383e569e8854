"""Training: recovery of ground truth, exact resumption, refusals and reports."""

import json

import pytest
import torch

from interp.errors import InterpError, UsageError
from interp.features import ARCHITECTURES, Dictionary, Standard, TopK, TrainSettings, train, transcoder
from interp.features.training.checkpoint import check_length
from interp.features.training.metrics import Moments
from interp.features.training.run import as_batch

D, FEATURES = 16, 32


def ground_truth(seed=1234):
    """More directions than dimensions, as far apart as random ones of this number get by repulsion."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(FEATURES, D, generator=generator), dim=1)
    for _ in range(300):
        cosines = directions @ directions.t() - torch.eye(FEATURES)
        directions = torch.nn.functional.normalize(directions - 0.1 * cosines.pow(3) @ directions, dim=1)
    return directions


class Superposed:
    """Batches of sparse sums of the directions; batch n depends on n alone."""

    def __init__(self, rows=512, active=2.0, fail_at=None, nan_at=None):
        self.directions, self.rows, self.share, self.n = ground_truth(), rows, active / FEATURES, 0
        self.fail_at, self.nan_at = fail_at, nan_at

    def __iter__(self):
        return self

    def __next__(self):
        if self.n == self.fail_at:
            raise KeyboardInterrupt
        generator = torch.Generator().manual_seed(self.n)
        self.n += 1
        on = torch.rand(self.rows, FEATURES, generator=generator) < self.share
        strength = 0.5 + torch.rand(self.rows, FEATURES, generator=generator)
        x = (on * strength) @ self.directions * 4
        return x * float("nan") if self.n == self.nan_at else x

    def state(self):
        return {"n": self.n}

    def restore(self, state):
        self.n = state["n"]


# Penalties are set so that about as many latents are active as features are; half as many latents again as features.
WIDTH = 48
RECOVERING = {
    "standard": {"l1": 1.5},
    "topk": {"k": 2},
    "batch_topk": {"k": 2},
    "jumprelu": {"l0": 3.0, "bandwidth": 0.5, "initial_threshold": 0.5},
    "gated": {"l1": 4.0},
}


def recovered(dictionary):
    """Mean over the true directions of the largest cosine with a decoder row."""
    rows = torch.nn.functional.normalize(dictionary.W_dec.detach(), dim=1)
    return float((rows @ ground_truth().t()).max(0).values.mean())


@pytest.mark.parametrize("architecture", list(RECOVERING))
def test_superposed_features_are_recovered(architecture):
    dictionary = ARCHITECTURES[architecture](D, WIDTH, **RECOVERING[architecture])
    assert recovered(dictionary) < 0.6  # random directions do not look recovered
    steps = 1500 if architecture in ("jumprelu", "gated") else 500
    run = train(dictionary, Superposed(), steps, settings=TrainSettings(lr=3e-3, dead_after=20_000))
    assert recovered(dictionary) > 0.95
    assert run.tokens == steps * 512


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_a_killed_run_resumes_to_the_weights_of_an_uninterrupted_one(architecture, tmp_path):
    settings = TrainSettings(checkpoint_every=7, log_every=5, resample_every=9, dead_after=3_000)

    class Graded(Superposed):
        def __next__(self):
            x = super().__next__()
            return x, x, x.flip(1)

    def make():
        return ARCHITECTURES[architecture](D, 64, **({"k": 3} if "top" in architecture else {}))

    whole, killed = make(), make()
    train(whole, Graded(), 30, settings=settings, directory=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(killed, Graded(fail_at=18), 30, settings=settings, directory=tmp_path / "killed")
    resumed = ARCHITECTURES[architecture](D, 64, seed=5, **({"k": 3} if "top" in architecture else {}))
    run = train(resumed, Graded(), 30, settings=settings, directory=tmp_path / "killed")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    assert [line["step"] for line in run.metrics] == [5, 10, 15, 20, 25, 30]
    lines = (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 10, 15, 20, 25, 30]


def test_batches_without_a_state_are_skipped_when_resuming(tmp_path):
    settings = TrainSettings(checkpoint_every=5)
    data = [batch for batch, _ in zip(Superposed(), range(12), strict=False)]
    whole, resumed = TopK(D, 64, 3), TopK(D, 64, 3)
    train(whole, data, 12, settings=settings)
    with pytest.raises(UsageError, match="end after 8 batches"):
        train(TopK(D, 64, 3), data[:8], 12, settings=settings, directory=tmp_path)
    train(resumed, data, 12, settings=settings, directory=tmp_path)
    assert torch.equal(whole.W_enc, resumed.W_enc)


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    settings = TrainSettings(checkpoint_every=5)
    with pytest.raises(InterpError, match=r"became nan at step 13; the checkpoint of step 10 .* is good"):
        train(TopK(D, 64, 3), Superposed(nan_at=13), 20, settings=settings, directory=tmp_path)
    resumed, whole = TopK(D, 64, 3), TopK(D, 64, 3)
    train(resumed, Superposed(), 20, settings=settings, directory=tmp_path)
    train(whole, Superposed(), 20, settings=settings)
    assert torch.equal(whole.W_dec, resumed.W_dec)


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    train(TopK(D, 64, 3), Superposed(), 4, directory=tmp_path)
    for dictionary, steps, settings, message in [
        (Standard(D, 64), 4, None, "architecture = 'topk'"),
        (TopK(D, 64, 4), 4, None, "k = 3, this run has 4"),
        (TopK(D, 32, 3), 4, None, "d_sae = 64"),
        (TopK(D, 64, 3), 4, TrainSettings(lr=5e-4), "lr = 0.001"),
        (TopK(D, 64, 3), 40, None, "run of 4 steps"),
    ]:
        with pytest.raises(UsageError, match=message):
            train(dictionary, Superposed(), steps, settings=settings, directory=tmp_path)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"nonsense")
    with pytest.raises(InterpError, match="damaged"):
        train(TopK(D, 64, 3), Superposed(), 4, directory=tmp_path)
    train(Standard(D, 64), Superposed(), 4, directory=tmp_path, resume=False)


def test_a_finished_run_asked_for_another_length_says_so_and_leaves_the_dictionary_alone(tmp_path):
    train(TopK(D, 64, 3), Superposed(), tokens=4 * 512, directory=tmp_path)
    other = TopK(D, 64, 3, seed=5)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    for asked in (40 * 512, 2 * 512):
        message = rf"a run of 4 steps \(2,048 tokens\) that is finished, asked for are {asked // 512} steps"
        with pytest.raises(UsageError, match=message):
            train(other, Superposed(), tokens=asked, directory=tmp_path)
        with pytest.raises(UsageError, match=message):
            check_length(tmp_path / "checkpoint.safetensors", asked, 512, TrainSettings())
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    check_length(tmp_path / "checkpoint.safetensors", 4 * 512, 512, TrainSettings())
    assert train(other, Superposed(), tokens=4 * 512 - 100, directory=tmp_path).steps == 4


def test_a_finished_run_whose_schedule_has_no_length_is_made_longer_bit_by_bit(tmp_path):
    settings = TrainSettings(warmup=0, decay=0, sparsity_warmup=0, resample_every=9, dead_after=1_000)
    whole, longer = TopK(D, 64, 3), TopK(D, 64, 3)
    train(whole, Superposed(), tokens=30 * 512, settings=settings)
    train(longer, Superposed(), tokens=10 * 512, settings=settings, directory=tmp_path)
    run = train(longer, Superposed(), tokens=30 * 512, settings=settings, directory=tmp_path)
    assert (run.steps, run.tokens) == (30, 30 * 512)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(longer.state_dict()[name], tensor), name
    shorter = r"a run of 30 steps .* that is finished, asked for are 10 steps"
    with pytest.raises(UsageError, match=shorter):
        train(longer, Superposed(), 10, settings=settings, directory=tmp_path)


def test_lengths_agree_as_long_as_no_step_differs():
    settings = TrainSettings(warmup=0, decay=0.2, sparsity_warmup=0)
    assert settings.agree(40, 100, 50)  # both decay later
    assert not settings.agree(42, 100, 50)
    assert not TrainSettings(warmup=0.05, decay=0, sparsity_warmup=0).agree(6, 100, 200)
    assert not TrainSettings(warmup=0, decay=0, sparsity_warmup=0.1).agree(2, 100, 200)
    resampling = TrainSettings(warmup=0, decay=0, sparsity_warmup=0, resample_every=10)
    assert resampling.agree(9, 10, 20)
    assert not resampling.agree(10, 10, 20)  # the last step of a run resamples nothing


def test_a_checkpoint_of_another_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("interp.features.training.checkpoint.VERSION", 0)
    train(TopK(D, 64, 3), Superposed(), 4, directory=tmp_path)
    monkeypatch.undo()
    with pytest.raises(UsageError, match="version 0"):
        train(TopK(D, 64, 3), Superposed(), 4, directory=tmp_path)


def test_the_explained_variance_is_one_minus_error_over_variance():
    target = torch.tensor([[101.0, 0.0], [103.0, 0.0], [105.0, 6.0]])
    error = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    moments = Moments()
    moments.add(target[:1], error[:1])
    moments.add(target[1:], error[1:])
    # squared errors 5; squared deviations from (103, 2): 4 + 4, 0 + 4, 4 + 16
    assert moments.r2() == pytest.approx(1 - 5 / 32)


def test_reports_hold_what_a_run_needs(tmp_path):
    seen = []
    settings = TrainSettings(log_every=10, dead_after=1000)
    run = train(TopK(D, 64, 3), Superposed(), tokens=20 * 512 - 3, settings=settings, report=seen.append)
    assert run.steps == 20
    assert seen == run.metrics
    assert {"step", "tokens", "loss", "mse", "l0", "r2", "dead_share", "lr", "tokens_per_second"} <= set(seen[-1])
    assert 0 < seen[-1]["l0"] <= 3
    assert seen[-1]["r2"] > seen[0]["r2"]


def test_decoder_rows_stay_at_norm_one_where_the_architecture_asks():
    for architecture, make in ARCHITECTURES.items():
        if architecture == "gradient_topk":
            continue
        dictionary = make(D, 64, **({"k": 3} if "top" in architecture else {}))
        train(dictionary, Superposed(), 5)
        norms = dictionary.W_dec.norm(dim=1)
        assert torch.allclose(norms, torch.ones(64), atol=1e-6) == (architecture != "standard")


def test_the_projected_gradient_does_not_change_norms():
    dictionary = TopK(D, 64, 3)
    dictionary.W_dec.grad = torch.randn(64, D)
    dictionary.project_gradient()
    assert float((dictionary.W_dec.grad * dictionary.W_dec.detach()).sum(1).abs().max()) < 1e-5


def test_schedules_rise_and_fall():
    settings = TrainSettings(lr=1.0, warmup=0.1, decay=0.5, sparsity_warmup=0.2)
    rates = [settings.lr_at(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[49] == 1.0
    assert rates[75] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.02)
    assert settings.sparsity_at(9, 100) == pytest.approx(0.5)


def test_resampling_revives_dead_latents():
    def run(resample_every):
        dictionary = Standard(D, WIDTH, l1=1.5)
        with torch.no_grad():
            dictionary.b_enc[16:] = -50.0
        settings = TrainSettings(dead_after=10_000, resample_every=resample_every, log_every=300)
        line = train(dictionary, Superposed(), 300, settings=settings).metrics[-1]
        return line["dead_share"], line["r2"]

    (dead, r2), (revived_dead, revived_r2) = run(None), run(50)
    assert dead == pytest.approx(32 / 48)
    assert revived_dead < dead / 2
    assert revived_r2 > r2


def test_bfloat16_rounds_little():
    exact, rounded = TopK(D, 64, 3), TopK(D, 64, 3)
    a = train(exact, Superposed(), 50).metrics[-1]["r2"]
    b = train(rounded, Superposed(), 50, settings=TrainSettings(bf16=True)).metrics[-1]["r2"]
    assert not torch.equal(exact.W_enc, rounded.W_enc)
    assert a == pytest.approx(b, abs=0.02)


def test_a_skip_transcoder_learns_a_linear_map():
    matrix = torch.randn(D, 6, generator=torch.Generator().manual_seed(1))
    pairs = ((x, x @ matrix) for x in Superposed())
    dictionary = transcoder("mlp_in.0", "mlp_out.0", D, 64, d_out=6, architecture="topk", k=2, skip=True)
    run = train(dictionary, pairs, 400, settings=TrainSettings(lr=1e-2))
    assert run.metrics[-1]["r2"] > 0.99


def test_batches_of_the_wrong_kind_are_refused():
    autoencoder, other = TopK(D, 64, 3), transcoder("mlp_in.0", "mlp_out.0", D, 64)
    with pytest.raises(UsageError, match=r"shape \(4, 5\), expected \(batch, 16\)"):
        as_batch(torch.zeros(4, 5), autoencoder)
    with pytest.raises(UsageError, match="pairs"):
        as_batch(torch.zeros(4, D), other)
    with pytest.raises(UsageError, match=r"not mlp_out\.0"):
        as_batch({other.reads: torch.zeros(4, D)}, other)
    batch = as_batch({other.reads: torch.zeros(4, D), "mlp_out.0": torch.ones(4, D)}, other)
    assert float(batch.target.mean()) == 1
    with pytest.raises(UsageError, match="either steps or tokens"):
        train(autoencoder, Superposed())
    with pytest.raises(UsageError, match="share"):
        TrainSettings(warmup=2.0)


def test_a_finished_run_leaves_a_dictionary_that_loads(tmp_path):
    dictionary = TopK(D, 64, 3, scale=0.5)
    train(dictionary, Superposed(), 5, directory=tmp_path)
    x = next(Superposed())
    torch.testing.assert_close(Dictionary.load(tmp_path)(x), dictionary(x))
