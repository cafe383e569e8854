"""Calls over the workers of a cluster give what they give here, also when workers are killed."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from command_line import command
from families import boot, hugging_face_model, tokenizer
from prompts import random_task
from test_attention_reach import as_keys
from test_attention_retrieval import COPY_LENGTH, induction_samples

import interp
from interp.efficiency.cost import Cost
from interp.efficiency.kv_cache import H2OCache, StreamingCache
from interp.efficiency.quality import Text
from interp.engine.shared import marked
from interp.engine.spread import in_order, used
from interp.engine.sweep import Part, finer
from interp.errors import InterpError, UsageError
from interp.features import ARCHITECTURES, TopK, TrainSettings, train
from interp.features.activations.rows import rows_of
from interp.patching import experiment
from interp.scale.address import Address
from interp.scale.files import Files, Missing, stored

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install -e '.[ray]'")
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random model in a folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    hugging_face_model("llama").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return interp.load(folder)


@pytest.fixture(scope="module")
def nodes():
    """A cluster of two nodes with one CPU each."""
    import ray

    from interp.scale.address import imported

    imported()
    from ray.cluster_utils import Cluster

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    small = {"num_cpus": 1, "object_store_memory": 100 << 20}
    port = _free_port()
    cluster = Cluster(initialize_head=True, head_node_args={**small, "ray_client_server_port": port})
    cluster.add_node(**small)
    cluster.client_port = port
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def two(nodes):
    """Two workers, one on each node, in force where a test says so."""
    with interp.scale.over(nodes.address) as cluster, unused():
        yield cluster


@contextlib.contextmanager
def unused():
    with used(None):
        yield


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _killing(monkeypatch, module, cluster):
    """The worker that is done with the first part is killed before it gets another; gives a list of its process."""
    track, killed = module.track, []

    @contextlib.contextmanager
    def tracked(*arguments):
        with track(*arguments) as advance:

            def advanced(done):
                if done and not killed:
                    killed.append(cluster.pool.pids[cluster.pool.idle[-1]])
                    os.kill(killed[0], signal.SIGKILL)
                advance(done)

            yield advanced

    monkeypatch.setattr(module, "track", tracked)
    return killed


@needs_ray
def test_a_sweep_is_the_same_to_the_last_bit_where_batches_are(model, two):
    task = random_task(n=4)
    options = {"by_position": True, "max_memory": 300_000, "per_example": True}
    here = interp.patching.activation(model, task, "heads", **options)
    with used(two):
        there = interp.patching.activation(model, task, "heads", **options)
    assert two.n_workers == 2
    assert abs(here).max() > 0.1
    xr.testing.assert_equal(there, here)
    assert {**there.attrs, "seconds": 0} == {**here.attrs, "seconds": 0}


@needs_ray
@pytest.mark.parametrize(
    ("nodes_of", "options"),
    [("mlp_out", {}), ("neurons", {"layers": [1]}), ("v", {"mode": "noising", "source": "mean", "metric": "kl"})],
)
def test_a_sweep_that_is_split_further_is_the_same_but_for_rounding(model, two, nodes_of, options):
    task = random_task(n=5)
    here = interp.patching.activation(model, task, nodes_of, **options)
    with used(two):
        there = interp.patching.activation(model, task, nodes_of, **options)
    assert abs(here).max() > 1e-3
    xr.testing.assert_allclose(there, here, **CLOSE)


@needs_ray
def test_groups_of_nodes_are_split_by_pairs(model, two):
    task, groups = random_task(n=6), {"two": ["a0.h1", "m1"]}
    here = interp.patching.groups(model, task, groups, per_example=True)
    with used(two):
        there = interp.patching.groups(model, task, groups, per_example=True)
    xr.testing.assert_allclose(there, here, **CLOSE)


@needs_ray
def test_functions_of_the_callers_own_stay_in_its_process(model, two):
    task, seen = random_task(n=2), []

    def double(z):
        seen.append(os.getpid())
        return 2 * z

    with used(two):
        found = interp.patching.intervene(model, task, {"a1.h2": double})
    xr.testing.assert_equal(found, interp.patching.intervene(model, task, {"a1.h2": lambda z: 2 * z}))
    assert set(seen) == {os.getpid()}


@needs_ray
def test_a_worker_killed_in_a_sweep_loses_nothing(model, two, monkeypatch, tmp_path):
    task = random_task(n=4)
    options = {"by_position": True, "max_memory": 300_000, "per_example": True}
    here = interp.patching.activation(model, task, "heads", **options)
    killed = _killing(monkeypatch, interp.patching.experiment, two)
    with used(two):
        there = interp.patching.activation(model, task, "heads", checkpoint=tmp_path / "sweep", **options)
    assert len(killed) == 1
    assert not set(killed) & set(two.pool.pids.values())
    assert not (tmp_path / "sweep").exists()
    xr.testing.assert_equal(there, here)


@needs_ray
def test_an_interrupted_sweep_goes_on_from_its_checkpoint_with_the_same_workers(model, two, monkeypatch, tmp_path):
    task, options = random_task(n=4), {"by_position": True, "max_memory": 300_000, "checkpoint": tmp_path / "sweep"}
    here, track, done = interp.patching.activation(model, task, "heads", **options), experiment.track, []

    @contextlib.contextmanager
    def interrupted(total, what):
        def advance(cells):
            done.append(total)
            if len(done) == 3:
                raise KeyboardInterrupt

        yield advance

    with used(two):
        monkeypatch.setattr(experiment, "track", interrupted)
        with pytest.raises(KeyboardInterrupt) as kept:
            interp.patching.activation(model, task, "heads", **options)
        assert (tmp_path / "sweep").exists()
        there = interp.patching.activation(model, task, "heads", **options)
    assert kept.type is KeyboardInterrupt
    assert done[3] < done[0]
    assert len(two.pool.idle) + len(two.pool.starting) == 2
    monkeypatch.setattr(experiment, "track", track)
    xr.testing.assert_equal(there, here)


@needs_ray
@pytest.mark.parametrize("rules", ["gradient", "relp"])
def test_attribution_is_split_by_pairs(model, two, rules):
    task = random_task(n=5)
    options = {"nodes": ["q", "heads"], "rules": rules, "per_example": True, "metric": ["logit_diff", "kl"]}
    here = interp.patching.attribution(model, task, **options)
    with used(two):
        there = interp.patching.attribution(model, task, **options)
    assert abs(here).max() > 1e-2
    xr.testing.assert_allclose(there, here, **CLOSE)
    assert there.attrs["accuracy"] == here.attrs["accuracy"]
    assert there.attrs["clean"] == pytest.approx(here.attrs["clean"], abs=1e-5)


@needs_ray
def test_estimates_are_the_same_to_the_last_bit_where_batches_are(model, two):
    task, options = random_task(n=3), {"nodes": "k", "by_position": True, "per_example": True, "max_memory": 1}
    for method in (interp.patching.atp_star, interp.patching.attribution):
        here = method(model, task, **options)
        with used(two):
            xr.testing.assert_equal(method(model, task, **options), here)


TEXTS = [" ".join(f"t{(7 * i + j * j) % 45 + 5}" for j in range(40)) for i in range(90)]


@needs_ray
def test_a_harvest_has_the_same_bytes_although_a_worker_is_killed(model, two, tmp_path, monkeypatch):
    places = ["resid_post.1", "mlp_in.2"]
    options = {"length": 16, "shard_tokens": 100, "dtype": "bfloat16", "exclude_special": True}
    here = interp.features.harvest(model, places, TEXTS, directory=tmp_path / "here", **options)
    killed = _killing(monkeypatch, interp.features.activations.harvest, two)
    with used(two):
        there = interp.features.harvest(model, places, TEXTS, directory=tmp_path / "there", **options)
    assert len(here.shards) > 8
    assert there.shards == here.shards
    assert there.manifest["scale"] == here.manifest["scale"]
    assert {file.name for file in there.folder.iterdir()} == {file.name for file in here.folder.iterdir()}
    assert len(killed) == 1
    assert not set(killed) & set(two.pool.pids.values())


def test_a_shard_is_sent_where_the_folder_is_not_seen_and_written_where_it_is(model, tmp_path):
    harvests = importlib.import_module("interp.features.activations.harvest")
    store = interp.features.harvest(model, "resid_post.1", TEXTS, directory=tmp_path, length=16, shard_tokens=500)
    rows = rows_of(TEXTS, model, None, 16)
    piece = (1, rows.part(rows.shards(500)[1]))
    with used(in_order), marked(tmp_path) as mark:
        written = harvests._begin(model, store.places, store.manifest, tmp_path, mark)(piece)
        tensors, norms = harvests._begin(model, store.places, store.manifest, tmp_path, mark + "x")(piece)
    assert written == store.shards[1]
    assert norms == store.shards[1].norms
    torch.testing.assert_close(tensors["resid_post.1"], store.load(1, ["resid_post.1"])["resid_post.1"], rtol=0, atol=0)
    assert torch.equal(tensors["tokens"], store.load(1, ["tokens"])["tokens"])


@needs_ray
def test_transcoders_are_trained_layer_by_layer(model, two, tmp_path):
    options = {"tokens": 400, "width": 16, "batch": 64, "length": 16, "options": {"k": 4}}
    here = interp.features.train_transcoders(model, [2, 0], TEXTS, directory=tmp_path / "here", **options)
    with used(two):
        there = interp.features.train_transcoders(model, [2, 0], TEXTS, directory=tmp_path / "there", **options)
    assert list(there) == list(here) == [0, 2]
    for layer, one in here.items():
        for name, weight in one.state_dict().items():
            assert torch.equal(there[layer].state_dict()[name], weight)
    layouts = [
        sorted(str(f.relative_to(tmp_path / at)) for f in (tmp_path / at).rglob("*")) for at in ("here", "there")
    ]
    assert layouts[0] == layouts[1]


@needs_ray
def test_reach_is_split_by_samples_and_a_model_is_loaded_by_its_name(two):
    toy, samples = interp.load("toy-induction"), as_keys(induction_samples())
    here = interp.attention.head_reach(toy, samples, sinks=0, window=COPY_LENGTH)
    with used(two):
        there = interp.attention.head_reach(toy, samples, sinks=0, window=COPY_LENGTH)
    xr.testing.assert_equal(there.evidence["each"], here.evidence["each"])
    assert there.settings == here.settings


@needs_ray
def test_the_quality_of_plans_is_measured_by_workers_and_their_seconds_are_not(model, two):
    tokens = torch.arange(60).reshape(2, 30) % 17 + 5
    deployed = interp.deploy(model)

    def measured():
        quality, cost = [Text(tokens, scored=10, piece=3)], Cost(16, 2, source=tokens, peak=False)
        plans = [StreamingCache(budget=0.5, length=24), H2OCache(budget=0.4, length=24)]
        return interp.efficiency.tradeoff(deployed, plans, quality, cost, repetitions=1)

    here = measured()
    with used(two):
        there = measured()
        in_force = StreamingCache(budget=0.5, length=24).plan(deployed).applied(deployed)
        with in_force, pytest.raises(UsageError, match=r"plans in force \(streaming\)"):
            measured()
    quality = here.values["group"] == "quality"
    assert quality.sum() >= 9
    assert there.values[quality].equals(here.values[quality])
    assert there.values["quantity"].tolist() == here.values["quantity"].tolist()


def _activations(n=12, batch=50, width=16):
    """Batches of activations in a few directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(24, width, generator=generator)
    codes = torch.rand(n * batch, 24, generator=generator) * (torch.rand(n * batch, 24, generator=generator) < 0.1)
    return list((codes @ directions + 0.1).split(batch))


STEPS = TrainSettings(lr=0.01, log_every=3, checkpoint_every=3, dead_after=150, clip=5.0)


@needs_ray
@pytest.mark.parametrize("architecture", ["topk", "standard", "jumprelu", "gated"])
def test_training_by_two_workers_has_the_losses_of_one_with_the_whole_batch(two, architecture):
    made, heard = ARCHITECTURES[architecture], []
    options = {"k": 3} if architecture == "topk" else {}
    here, there = (made(16, 32, seed=1, **options) for _ in range(2))
    one = train(here, _activations(batch=51), steps=12, settings=STEPS)
    with used(two):
        other = train(there, _activations(batch=51), steps=12, settings=STEPS, report=heard.append)
    assert [line["step"] for line in heard] == [3, 6, 9, 12]
    assert heard == other.metrics
    assert (other.steps, other.tokens, other.dictionary) == (12, 12 * 51, there)
    for line, same in zip(one.metrics, other.metrics, strict=True):
        assert set(line) == set(same)
        for name in set(line) - {"tokens_per_second"}:
            assert same[name] == pytest.approx(line[name], rel=1e-4, abs=1e-6), name
    assert one.metrics[-1]["loss"] < 0.9 * one.metrics[0]["loss"]
    for name, weight in here.state_dict().items():
        torch.testing.assert_close(there.state_dict()[name], weight, rtol=1e-3, atol=1e-4)
    assert not there.training


@needs_ray
def test_training_goes_on_from_its_checkpoint_when_a_worker_is_killed(two, tmp_path):
    here, there = (TopK(16, 32, k=3, seed=1) for _ in range(2))
    one, killed, heard = train(here, _activations(), steps=12, settings=STEPS), [], []

    def kill_once(line):
        heard.append(line["step"])
        if line["step"] == 6:
            killed.extend(two.pool.pids.values())
            os.kill(killed[-1], signal.SIGKILL)

    with used(two):
        other = train(there, _activations(), steps=12, settings=STEPS, directory=tmp_path, report=kill_once)
    assert len(killed) == 2
    assert heard == [3, 6, 9, 12]
    assert [line["loss"] for line in other.metrics] == pytest.approx([line["loss"] for line in one.metrics], rel=1e-4)
    loaded = interp.features.Dictionary.load(tmp_path)
    torch.testing.assert_close(loaded.W_dec, here.W_dec, rtol=1e-3, atol=1e-4)
    assert sorted(file.name for file in tmp_path.iterdir() if "checkpoint" in file.name) == ["checkpoint.safetensors"]


@needs_ray
def test_what_can_not_be_trained_together_is_refused(two, tmp_path):
    dictionary = TopK(16, 32, k=3)
    with used(two):
        with pytest.raises(UsageError, match="batch_topk dictionary chooses latents of the whole batch"):
            train(ARCHITECTURES["batch_topk"](16, 32, k=3), _activations(), steps=2)
        with pytest.raises(UsageError, match="resampling looks at the whole batch"):
            train(dictionary, _activations(), steps=2, settings=TrainSettings(resample_every=1))
        with pytest.raises(UsageError, match="not an iterator that can be gone through once"):
            train(dictionary, iter(_activations()), steps=2)
        with pytest.raises(UsageError, match="the activations end after 12 batches"):
            train(dictionary, _activations(), steps=20)
        assert len(two.pool.idle) == 2


def test_files_that_a_node_has_not_are_sent_to_it_once(folder, model, tmp_path, monkeypatch):
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path))
    monkeypatch.setattr("interp.scale.files._PIECE", 1000)
    files, sent = Files.of(str(folder)), {}
    elsewhere = replace(files, path="/no/such/place/tiny")
    with pytest.raises(Missing):
        elsewhere.found(None, sent.__getitem__)
    references = stored(files, lambda piece: sent.setdefault(len(sent), piece) and len(sent) - 1)
    assert len(sent) > len(references)
    where = elsewhere.found(references, sent.__getitem__)
    assert files.found(None, sent.__getitem__) == str(folder)
    assert where.startswith(str(tmp_path))
    assert interp.models.fingerprint(interp.load(where)) == interp.models.fingerprint(model)
    assert elsewhere.found(None, sent.__getitem__) == where


@needs_ray
def test_models_that_workers_can_not_load_are_refused(folder, model, two):
    task = random_task(n=2)
    with (
        used(two),
        pytest.raises(UsageError, match=r"loaded with interp\.load from a name or a folder; this one was not"),
    ):
        interp.patching.activation(boot(hugging_face_model("llama")), task)
    changed = interp.load(folder)
    with torch.no_grad():
        changed.original_model.lm_head.weight[0, 0] *= 1 + 1e-6
    with used(two), pytest.raises(InterpError, match=r"loaded from .*tiny has other weights .* changed after"):
        interp.patching.activation(changed, task)


@needs_ray
def test_the_same_weights_in_another_precision_are_another_model(folder, two):
    task = random_task(n=2)
    for dtype in (torch.float64, torch.float32):
        model = interp.load(folder, dtype=dtype)
        here = interp.patching.activation(model, task, "mlp_out", layers=[1], per_example=True)
        with used(two):
            there = interp.patching.activation(model, task, "mlp_out", layers=[1], per_example=True)
        assert there.dtype == here.dtype
        np.testing.assert_allclose(there, here, rtol=1e-12 if dtype == torch.float64 else 1e-5, atol=1e-6)


@needs_ray
def test_workers_with_other_versions_are_refused(nodes, monkeypatch):
    from interp.scale import pool

    monkeypatch.setattr(pool, "versions", lambda: {"interp": "0.1.0", "torch": "1.13"})
    hello = ("node7", 1, {"interp": "0.1.0", "torch": "2.0"})

    class Fake:
        exceptions = None

        def get(self, reference):
            return hello

    one = pool.Pool.__new__(pool.Pool)
    one.ray, one.starting, one.pids, one.idle = Fake(), {"hello": "worker"}, {}, []
    with pytest.raises(InterpError, match=r"worker on node7 has torch 2\.0, this process has torch 1\.13; install"):
        one._let_in("hello")


COMMANDS = """
import sys
from command_line import command
for address in sys.argv[1:]:
    done = command("patch", "induction", "--model", "toy-induction", "-n", "3", "--json", "--ray", address)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
"""


@needs_ray
def test_the_command_line_splits_over_local_workers_and_from_outside_of_a_cluster(nodes):
    """The second worker has a node of its own, as the others' may be taken."""
    further = nodes.add_node(num_cpus=1, object_store_memory=100 << 20)
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, "local:1", f"ray://127.0.0.1:{nodes.client_port}"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    nodes.remove_node(further)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(part) for part in done.stdout.split("\n\n") if part.strip())
    here = json.loads(command("patch", "induction", "--model", "toy-induction", "-n", 3, "--json").stdout)
    assert first["data"] == second["data"]
    np.testing.assert_allclose(first["data"], here["data"], **CLOSE)


@pytest.mark.parametrize(("address", "why"), [("local:0", "is no address of a cluster"), ("here", "ray://host:10001")])
def test_the_command_line_refuses_what_is_no_address_before_anything_is_loaded(address, why):
    for words in (["patch", "ioi"], ["retrieval-heads", "--by", "reach"], ["sae", "train", "-o", "x"]):
        done = command(*words, "--ray", address)
        assert done.returncode == 2
        assert why in done.stderr


def test_retrieval_by_copying_is_not_split():
    done = command("retrieval-heads", "--ray", "local:2")
    assert done.returncode == 2
    assert "--ray goes with --by reach" in done.stderr


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("local:2", Address("local:2", local=2)),
        ("auto", Address("auto")),
        ("ray://head.cluster:10001", Address("ray://head.cluster:10001", host="head.cluster", port=10001, client=True)),
        ("10.0.0.7:6379", Address("10.0.0.7:6379", host="10.0.0.7", port=6379)),
    ],
)
def test_addresses_are_read(text, meant):
    assert Address.parse(text) == meant


@pytest.mark.parametrize("text", ["", "local", "local:0", "local:two", "ray://head", "head:99999", "http://head:80/x"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UsageError, match=r"is no address of a cluster; write ray://host:10001"):
        Address.parse(text)


@needs_ray
@pytest.mark.parametrize("kind", ["ray://127.0.0.1:{}", "127.0.0.1:{}"])
def test_an_address_of_no_cluster_is_refused_within_seconds(kind):
    began = time.monotonic()
    address, why = kind.format(_free_port()), r"no Ray cluster at .*: Connection refused; start one with `ray start"
    with pytest.raises(InterpError, match=why), interp.scale.over(address):
        pass
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(InterpError, match="what answers there is no Ray"):
            Address.parse(kind.format(other.getsockname()[1])).check()
    assert time.monotonic() - began < 10


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("interp.scale.address.find_spec", lambda name: None)
    why = r"takes Ray, which is not installed; .* pip install 'interp\[ray\]'"
    with pytest.raises(UsageError, match=why), interp.scale.over("local:2"):
        pass


def test_parts_are_halved_until_there_are_enough_and_stay_the_same_cells():
    parts = [Part(slice(0, 4), 2, [0, 1, 2, 5]), Part(slice(4, 6), None, [0, 1])]
    found = finer(parts, 9)
    assert len(found) == 9

    def cells(parts):
        every = [(n, e) for p in parts for n in p.numbers for e in range(p.examples.start, p.examples.stop)]
        return sorted(every)

    assert cells(found) == cells(parts)
    assert len(finer(parts, 1000)) == 16 + 1


def test_results_are_put_in_order():
    assert list(in_order(iter([(2, "c"), (0, "a"), (1, "b"), (3, "d")]))) == ["a", "b", "c", "d"]
