"""Activations harvested from models: the right ones, each token once, whatever happens on the way."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import tiny

from interp.engine.verify import verified
from interp.errors import InterpError, UsageError
from interp.features.activations import shards as files
from interp.features.activations.harvest import harvest
from interp.features.activations.rows import rows_of
from interp.features.activations.store import ActivationStore

PREFIX = 1  # t1 stands before every text
BOTH = ["resid_post.1", "mlp_out.0"]


def texts(n=12, seed=0, longest=30):
    """Texts of t4 to t9 and t40 to t49; the tokenizer finds the special tokens t1, t2 and t3 in the names of others."""
    draw = random.Random(seed)
    words = [f"t{i}" for i in (*range(4, 10), *range(40, 50))]
    return [" ".join(draw.choices(words, k=draw.randrange(3, longest))) for _ in range(n)]


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.fixture
def kept(model, tmp_path):
    """A store of 8 shards."""
    return harvest(model, BOTH, texts(), 120, 16, tmp_path / "acts", shard_tokens=16)


def everything(store, place="resid_post.1", **settings):
    return torch.cat(list(store.batches(7, place, **settings)))


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir()) if not path.name.startswith(".")}


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma3", "qwen3", "phi3"])
@pytest.mark.parametrize("packed", [True, False])
def test_activations_are_those_of_the_models_own_hooks(family, packed):
    model = tiny(family)
    sites = ["resid_pre", "q", "k", "v", "z", "attn_out", "mlp_in", "post", "mlp_out", "resid_post"]
    stream = harvest(model, [f"{site}.1" for site in sites], texts(5), length=16, packed=packed)
    rows = rows_of(texts(5), model, None, 16, packed=packed)
    for place in stream.places:
        mine = everything(stream, place, shuffle=False).split(rows.lengths.tolist())
        for row in (0, len(rows) - 1):
            ids = torch.from_numpy(rows.tokens(row)).long()[None]
            _, cache = model.run_with_cache(ids, names_filter=[place.hook])
            torch.testing.assert_close(mine[row], cache[place.hook][0].flatten(1), rtol=1e-4, atol=1e-4)


def test_nothing_behind_the_last_place_is_computed():
    model = tiny("llama")
    verified(model)
    expected = everything(harvest(model, "attn_out.1", texts(3), length=16), "attn_out.1")

    def computed(*_):
        raise AssertionError("a matrix behind the last place was read")

    for part in (getattr(model.blocks[1].mlp, "in"), model.blocks[2].attn.q):
        part.original_component.register_forward_hook(computed)
    with pytest.raises(AssertionError, match="behind"):
        everything(harvest(model, "resid_post.1", texts(3), length=16))
    assert torch.equal(everything(harvest(model, "attn_out.1", texts(3), length=16), "attn_out.1"), expected)


def test_packed_rows_are_the_documents_one_after_another(model):
    rows = rows_of(["t5 t6 t7", "t8", "t9 t40"], model, None, 4, seed=None)
    assert [rows.tokens(i).tolist() for i in range(len(rows))] == [[1, 5, 6, 7], [1, 8, 1, 9], [1, 40]]
    assert [rows.documents(i).tolist() for i in range(len(rows))] == [[0, 0, 0, 0], [1, 1, 2, 2], [2, 2]]
    rows = rows_of(["t5 t6 t7", "t8", "t9 t40"], model, None, 4, seed=None, exclude_special=True)
    assert [rows.mask(i).tolist() for i in range(3)] == [[False, True, True, True], [False, True] * 2, [False, True]]


def test_unpacked_rows_are_the_beginnings_of_documents(model):
    rows = rows_of(["t5 t6 t7 t8 t9", " ", "t9 t40"], model, None, 4, packed=False, seed=None)
    assert [rows.tokens(i).tolist() for i in range(len(rows))] == [[1, 5, 6, 7], [1, 9, 40]]
    assert rows.documents(1).tolist() == [2, 2, 2]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("exclude_special", [True, False])
def test_exactly_as_many_tokens_are_given_as_asked_for(model, packed, exclude_special):
    layout = {"packed": packed, "exclude_special": exclude_special}
    every = rows_of(texts(6), model, None, 8, **layout)
    whole = [int(t) for i in range(len(every)) for t in every.tokens(i)[every.mask(i)]]
    assert (PREFIX in whole) is not exclude_special
    for n in range(1, len(whole) + 1):
        rows = rows_of(texts(6), model, n, 8, **layout)
        assert [int(t) for i in range(len(rows)) for t in rows.tokens(i)[rows.mask(i)]] == whole[:n]
        assert rows.kept.sum() == n
    store = harvest(model, BOTH, texts(6), 37, 8, **layout)
    assert store.n_tokens == len(everything(store)) == 37


def test_every_activation_knows_its_token_document_position_and_context(model, kept):
    rows = rows_of(texts(), model, 120, 16)
    batches = kept.batches(50, "resid_post.1", seed=3)
    by_hand = [(i, p) for i in range(len(rows)) for p in range(rows.lengths[i])]
    for _ in batches:
        origin, around = kept.origin(batches.index), kept.contexts(batches.index, 3, 2)
        for at, which in enumerate(batches.index.tolist()):
            row, position = by_hand[which]
            ids = rows.tokens(row).tolist()
            assert int(origin.token[at]) == ids[position]
            assert int(origin.position[at]) == position
            assert int(origin.document[at]) == rows.documents(row)[position]
            wanted = [ids[p] if 0 <= p < len(ids) else -1 for p in range(position - 3, position + 3)]
            assert around[at].tolist() == wanted
    with pytest.raises(UsageError, match="0 to 119"):
        kept.origin(torch.tensor([120]))


def test_every_source_of_the_same_texts_gives_the_same_activations(model, tmp_path):
    class Stream:
        def __iter__(self):
            return ({"text": text, "id": 7} for text in texts())

    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()))
    dicts = [{"text": text} for text in texts()]
    given = [everything(harvest(model, BOTH, s, 50, 16, seed=None)) for s in (texts(), Stream(), dicts, str(file))]
    assert all(torch.equal(x, given[0]) for x in given)
    ids = torch.arange(4, 36).view(4, 8)
    direct = everything(harvest(model, BOTH, ids, length=8), shuffle=False).view(4, 8, -1)
    _, cache = model.run_with_cache(ids)
    torch.testing.assert_close(direct, cache["blocks.1.hook_resid_post"], rtol=1e-4, atol=1e-4)


def test_a_shuffle_is_a_permutation_in_every_epoch(kept):
    straight = everything(kept, shuffle=False)
    batches = kept.batches(7, "resid_post.1", seed=1, epochs=2, mixed=3)
    seen, index = [], []
    for x in batches:
        seen.append(x)
        index.append(batches.index)
    assert [len(x) for x in seen] == [7] * 34 + [2]
    index = torch.cat(index)
    first, second = index.split(120)
    assert torch.equal(torch.cat(seen), straight[index])
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(120))
    assert not torch.equal(first, second)
    assert torch.equal(everything(kept, seed=1, epochs=2, mixed=3), straight[index])
    assert not torch.equal(everything(kept, seed=2, epochs=2, mixed=3), straight[index])
    assert len({int(i) // 16 for i in first[:48]}) == 3  # three shards are mixed with one another
    assert len({int(i) // 16 for i in first[:7]}) > 1


def test_places_are_given_together_for_the_same_tokens(kept):
    batches = kept.batches(7, BOTH, seed=5)
    both = list(batches)
    for name in BOTH:
        assert torch.equal(torch.cat([x[name] for x in both]), everything(kept, name, seed=5))


def test_batches_go_on_from_any_state(kept):
    whole = list(kept.batches(9, "resid_post.1", seed=4, epochs=2, mixed=3))
    running = kept.batches(9, "resid_post.1", seed=4, epochs=2, mixed=3)
    for at in range(len(whole) + 1):
        state = json.loads(json.dumps(running.state()))
        fresh = kept.batches(9, "resid_post.1", seed=4, epochs=2, mixed=3)
        fresh.restore(state)
        rest = list(fresh)
        assert len(rest) == len(whole) - at
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[at:], strict=True))
        next(running, None)
    with pytest.raises(UsageError, match=r"seed 4.* 5"):
        kept.batches(9, "resid_post.1", seed=5, mixed=3).restore(state)


def test_a_stream_gives_what_a_store_gives(model, kept):
    stream = harvest(model, BOTH, texts(), 120, 16, shard_tokens=16)
    for name in BOTH:
        assert torch.equal(everything(stream, name, seed=2, epochs=2), everything(kept, name, seed=2, epochs=2))
    index = torch.tensor([5, 119, 40])
    assert torch.equal(stream.contexts(index, 4), kept.contexts(index, 4))
    assert stream.scale("mlp_out.0") == pytest.approx(kept.scale("mlp_out.0"), rel=0.5)  # of its first shard


def test_scale_and_mean_are_those_of_all_activations(kept):
    for name in BOTH:
        x = everything(kept, name).double()
        assert kept.scale(name) == pytest.approx(32**0.5 / float(x.norm(dim=1).mean()), rel=1e-5)
        assert kept.manifest["scale"][name] == pytest.approx(kept.scale(name))
        torch.testing.assert_close(kept.mean(name).double(), x.mean(0), rtol=1e-5, atol=1e-5)


def test_bfloat16_halves_the_disk_and_its_error_is_in_the_manifest(model, kept, tmp_path):
    half = harvest(model, BOTH, texts(), 120, 16, tmp_path / "half", dtype="bfloat16", shard_tokens=16)
    fast = harvest(model, BOTH, texts(), 120, 16, tmp_path / "fast", autocast="bfloat16", shard_tokens=16)
    assert kept.manifest["error"] is None
    exact = everything(kept, shuffle=False)[: half.manifest["error"]["resid_post.1"]["n"]]
    for store, bound in ((half, 2**-8), (fast, 0.2)):
        error = store.manifest["error"]["resid_post.1"]
        ratio = (everything(store, shuffle=False)[: error["n"]] - exact).norm(dim=1) / exact.norm(dim=1)
        assert error["relative"] == pytest.approx(float(ratio.mean()), rel=1e-4)
        assert error["worst"] == pytest.approx(float(ratio.max()), rel=1e-4)
        assert 0 < error["relative"] < bound
    raw = half.load(0, BOTH)["mlp_out.0"]
    assert raw.dtype == torch.bfloat16
    assert torch.equal(raw, kept.load(0, BOTH)["mlp_out.0"].bfloat16())


class Killed(BaseException):
    """A fault injected."""


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_fault_at_any_write_loses_and_doubles_nothing(model, kept, tmp_path, monkeypatch, fault):
    whole, real, folder = contents(kept.folder), os.replace, tmp_path / "again"
    at, finished = 0, False
    while not finished:
        left = [at]

        def failing(source, target, left=left):
            if left[0] == 0:
                if fault == "after":
                    real(source, target)
                raise Killed
            left[0] -= 1
            real(source, target)

        monkeypatch.setattr(os, "replace", failing)
        try:
            harvest(model, BOTH, texts(), 120, 16, folder, shard_tokens=16)
            finished = True
        except Killed:
            at = (at + 1) % 3  # a fault at the shard, at its manifest, at the shard behind it, ...
    assert contents(folder) == whole


KILLER = """
import os, random, signal, sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from families import tiny
from test_features_store import texts, harvest, BOTH
model, folder = tiny("llama"), {folder!r}
make = lambda to: harvest(model, BOTH, texts(40), 600, 16, to, shard_tokens=16)
make(folder + "-warm")
start = time.perf_counter()
make(folder + "-whole")
whole = time.perf_counter() - start
random.seed(0)
kills = 0
for attempt in range(200):
    child = os.fork()
    if not child:
        make(folder)
        os._exit(0)
    held = len(os.listdir(folder)) if os.path.isdir(folder) else 0
    wanted, ended = held + random.randint(2, 8), 0
    while not ended and (not os.path.isdir(folder) or len(os.listdir(folder)) < wanted):
        time.sleep(whole / 2000)
        ended, status = os.waitpid(child, os.WNOHANG)
    time.sleep(random.uniform(0, 0.02) * whole)
    if not ended:
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        break
    kills += 1
print(kills)
"""


def test_a_harvest_killed_again_and_again_has_the_bytes_of_one_that_was_not(tmp_path):
    script = KILLER.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "acts"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 2
    assert contents(tmp_path / "acts") == contents(tmp_path / "acts-whole")
    assert not list((tmp_path / "acts").glob(".interp-*"))


def test_a_full_disk_is_named_and_leaves_nothing_half_written(model, tmp_path, monkeypatch):
    folder, real, calls = tmp_path / "acts", Path.write_bytes, []

    def full(path, data):
        calls.append(path)
        if len(calls) == 4:
            real(path, data[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InterpError, match=r"disk is full.*manifest\.json needs [\d,]+ bytes"):
        harvest(model, BOTH, texts(), 120, 16, folder, shard_tokens=16)
    assert not list(folder.glob(".interp-*"))
    assert len(files.read_manifest(folder)[1]) == 1
    assert harvest(model, BOTH, texts(), 120, 16, folder, shard_tokens=16).n_tokens == 120
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(InterpError, match=r"needs [\d,]+ bytes and 1,000 are free"):
        harvest(model, BOTH, texts(), 120, 16, tmp_path / "other")


def corrupt(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def test_a_damaged_shard_is_named_skipped_if_asked_and_made_anew(model, kept):
    folder, whole = kept.folder, contents(kept.folder)
    corrupt(folder / "shard-00002.safetensors")
    with pytest.raises(InterpError, match=r"shard-00002\.safetensors is corrupted.*skip_corrupted"):
        everything(ActivationStore.open(folder))
    cut = folder / "shard-00004.safetensors"
    cut.write_bytes(cut.read_bytes()[:-10])
    with pytest.raises(InterpError, match=r"shard-00004\.safetensors is cut short"):
        ActivationStore.open(folder)
    (folder / "shard-00005.safetensors").unlink()
    with pytest.warns(UserWarning, match=r"left out 3 of 8.*00002.*00004.*00005"):
        rest = ActivationStore.open(folder, skip_corrupted=True)
    assert rest.n_tokens == len(everything(rest)) == 120 - 48
    torch.testing.assert_close(rest.mean(BOTH[0]), everything(rest).mean(0), rtol=1e-4, atol=1e-4)
    harvest(model, BOTH, texts(), 120, 16, folder, shard_tokens=16)
    assert contents(folder) == whole


def test_a_store_is_refused_for_another_model_and_another_harvest(model, kept):
    other = tiny("llama", seed=1)
    with pytest.raises(UsageError, match=r"fingerprint.*any_model"):
        ActivationStore.open(kept.folder, other)
    assert ActivationStore.open(kept.folder, other, any_model=True).n_tokens == 120
    assert ActivationStore.open(kept.folder, model).n_tokens == 120
    for changed, message in (
        ({"tokens": 119}, "its n_tokens is 120, asked for is 119"),
        ({"length": 8}, "its length is 16, asked for is 8"),
        ({"source": texts(seed=1)}, "its text is"),
        ({"places": "resid_post.0"}, "its places is"),
        ({"model": other}, "its fingerprint is"),
    ):
        call = {"model": model, "places": BOTH, "source": texts(), "tokens": 120, "length": 16, **changed}
        with pytest.raises(UsageError, match=message):
            harvest(**call, directory=kept.folder, shard_tokens=16)


def test_a_store_that_is_not_complete_or_none_at_all_is_refused(kept, tmp_path):
    manifest, shards = files.read_manifest(kept.folder)
    files.write_manifest(kept.folder, manifest, shards[:3])
    with pytest.raises(InterpError, match="stopped after 3 of 8 shards"):
        ActivationStore.open(kept.folder)
    assert ActivationStore.open(kept.folder, incomplete=True).n_tokens == sum(s.tokens for s in shards[:3])
    with pytest.raises(InterpError, match="holds no store"):
        ActivationStore.open(tmp_path / "nowhere")
    (kept.folder / "manifest.json").write_text('{"format": "interp.activations/1", "shards": [{}]}')
    with pytest.raises(InterpError, match="damaged"):
        ActivationStore.open(kept.folder)
    (kept.folder / "manifest.json").write_text('{"format": "interp.activations/9"}')
    with pytest.raises(InterpError, match="activations/9"):
        ActivationStore.open(kept.folder)


def test_a_directory_serves_one_harvest_at_a_time(model, tmp_path):
    with files.exclusive(tmp_path), pytest.raises(InterpError, match="another process"):
        harvest(model, BOTH, texts(), 50, 16, tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"places": "resid_past.1"}, "resid_post"),
        ({"places": "resid_post.9"}, "layers 0 to 2"),
        ({"places": "blocks.1.hook_resid_past"}, "hook"),
        ({"places": []}, "name a place"),
        ({"places": "pattern.0"}, "pattern"),
        ({"source": []}, "has 0 tokens, and 50 are needed"),
        ({"source": ["", " "]}, "has 0 tokens"),
        ({"tokens": 10_000}, r"has 2\d\d tokens, and 10,000 are needed; give more text or ask for 2\d\d at most"),
        ({"source": "sotuu"}, "sotu"),
        ({"source": [1, 2]}, "neither a text nor an object"),
        ({"source": {"train": []}}, r"source\['train'\]"),
        ({"source": torch.zeros(3, 4)}, "integers"),
        ({"length": 1}, "length of 2"),
        ({"tokens": 0}, "1 token at least"),
        ({"dtype": "float8"}, "dtype 'float8'"),
        ({"autocast": "int4"}, "autocast 'int4'"),
        ({"shard_tokens": 0}, "shard_tokens=0"),
        ({"max_memory": 1 << 60}, "max_memory"),
    ],
)
def test_bad_input_is_refused_with_a_reason(model, changed, message):
    with pytest.raises(UsageError, match=message):
        harvest(**{"model": model, "places": BOTH, "source": texts(), "tokens": 50, "length": 16, **changed})


def test_a_place_or_width_that_was_not_harvested_is_refused(kept):
    with pytest.raises(UsageError, match="several places"):
        kept.scale()
    with pytest.raises(UsageError, match=r"resid_post\.1"):
        kept.batches(4, "resid_post.2")
    with pytest.raises(UsageError, match="have 32 numbers, 64 are wanted"):
        kept.check("resid_post.1", 64)
    with pytest.raises(UsageError, match="batch_size"):
        kept.batches(0, "resid_post.1")


def test_activations_that_are_not_finite_are_refused():
    model = tiny("llama")
    verified(model)
    with torch.no_grad():
        model.blocks[1].mlp.out.original_component.weight[0, 0] = torch.inf
    with pytest.raises(InterpError, match=r"resid_post\.1 are not finite"):
        everything(harvest(model, "resid_post.1", texts(), 50, 16))


@pytest.mark.real_model
def test_layer_15_of_smollm2_is_its_hook_and_bfloat16_is_near(smollm2):
    stream = harvest(smollm2, "resid_post.15", "prose", 128, 64, autocast="bfloat16", exclude_special=True)
    error = stream.manifest["error"]["resid_post.15"]
    assert 0 < error["relative"] < 0.02
    exact = harvest(smollm2, "resid_post.15", "prose", 128, 64)
    rows = rows_of("prose", smollm2, 128, 64)
    _, cache = smollm2.run_with_cache(
        torch.from_numpy(rows.tokens(0)).long()[None], names_filter="blocks.15.hook_resid_post", stop_at_layer=16
    )
    mine = next(exact.batches(64, shuffle=False))
    torch.testing.assert_close(mine, cache["blocks.15.hook_resid_post"][0], rtol=1e-3, atol=1e-2)
