"""Small files that declare huge sizes: each is refused in one message, at once, and before memory is taken for them.

All are read in one process of its own that may take no more than a few hundred MiB beyond what its imports took.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SECONDS, ALARM, MIB = 2, 15, 256
Case = Callable[[Path], Callable[[], Any]]
CASES: dict[str, tuple[Case, str]] = {}
"""What writes a file into a folder and gives what reads it, and what the message must say."""


def refused(name: str, says: str) -> Callable[[Case], Case]:
    def add(case: Case) -> Case:
        CASES[name] = case, says
        return case

    return add


def changed(path: Path, **values: Any) -> None:
    """Sets values of a JSON file; a name with dots leads to one inside."""
    held = json.loads(path.read_text())
    for name, value in values.items():
        *where, last = name.split("__")
        inner = held
        for part in where:
            inner = inner[int(part) if isinstance(inner, list) else part]
        inner[int(last) if isinstance(inner, list) else last] = value
    path.write_text(json.dumps(held))


def tensors(path: Path, shapes: dict[str, list[int]], data: bytes = b"", **about: str) -> None:
    """A safetensors file whose header says what it likes."""
    header: dict[str, Any] = {"__metadata__": about} if about else {}
    for name, shape in shapes.items():
        size = 4
        for one in shape:
            size *= one
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


# Dictionaries


def _dictionary(**values: Any) -> Case:
    def case(folder: Path) -> Callable[[], Any]:
        from interp.features import Dictionary, TopK

        TopK(3, 5, k=2).save(folder)
        changed(folder / "cfg.json", **values)
        return lambda: Dictionary.load(folder)

    return case


refused("d_sae of 400,000", "400000")(_dictionary(d_sae=400_000))
refused("d_sae of a billion", "1000000000")(_dictionary(d_sae=10**9))
refused("d_sae beyond 64 bits", "d_sae is 1000000000")(_dictionary(d_sae=10**30))
refused("d_in of a billion", "1000000000")(_dictionary(d_in=10**9))
refused("d_in and d_sae of a billion", "1000000000")(_dictionary(d_in=10**9, d_sae=10**9))
refused("k of a billion", "1000000000")(_dictionary(k=10**9))


@refused("d_sae of one of several transcoders", "1000000000")
def _(folder):
    from interp.features import transcoder
    from interp.features.training.transcoders import load_transcoders

    for layer in (0, 1):
        made = transcoder(f"mlp_in.{layer}", f"mlp_out.{layer}", 3, 5, architecture="topk", k=2)
        made.save(folder / f"layer_{layer}")
    changed(folder / "layer_1" / "cfg.json", d_sae=10**9)
    return lambda: load_transcoders(folder)


def _several(what: str, **values: Any) -> Case:
    def case(folder: Path) -> Callable[[], Any]:
        from interp.features import Dictionary, cross_layer_transcoder, crosscoder

        if what == "crosscoder":
            made: Any = crosscoder(["resid_post.0", "resid_post.1"], 3, 4, architecture="batch_topk", k=2)
        else:
            made = cross_layer_transcoder(range(2), 3, 4)
        made.save(folder)
        changed(folder / "cfg.json", **values)
        return lambda: Dictionary.load(folder)

    return case


refused("d_sae of a crosscoder", "1000000000")(_several("crosscoder", settings__d_sae=10**9))
refused("width of a crosscoder's place", "sae_weights.*1000000003")(_several("crosscoder", settings__d_in=[3, 10**9]))
refused("d_sae of a cross-layer transcoder", "sae_weights.*500000000")(_several("clt", settings__d_sae=10**9))
refused("width of a cross-layer transcoder", "1000000000")(_several("clt", settings__d_in=[3, 10**9]))
refused("layers of a cross-layer transcoder", "3,000 layers")(
    _several("clt", settings__d_in=[3] * 3000, settings__d_out=[3] * 3000)
)


@refused("tensors of circuit-tracer's transcoder", "cut short")
def _(folder):
    from interp.features import load_circuit_tracer

    shapes = {"W_enc": [10**6, 10**6], "W_dec": [10**6, 10**6], "b_enc": [10**6], "b_dec": [10**6]}
    tensors(folder / "x.safetensors", shapes, b"\0" * 64)
    return lambda: load_circuit_tracer(folder / "x.safetensors", "mlp_in.0", "mlp_out.0")


@refused("k of circuit-tracer's transcoder", "1000000000")
def _(folder):
    import torch
    from safetensors.torch import load_file, save_file

    from interp.features import load_circuit_tracer, save_circuit_tracer, transcoder

    path = folder / "x.safetensors"
    save_circuit_tracer(transcoder("mlp_in.0", "mlp_out.0", 3, 5, architecture="topk", k=2), path)
    save_file({**load_file(path), "k": torch.tensor(10**9)}, path)
    return lambda: load_circuit_tracer(path, "mlp_in.0", "mlp_out.0")


# Models


def _model(**values: Any) -> Case:
    def case(folder: Path) -> Callable[[], Any]:
        import interp
        from interp.models._data import data_path

        there = shutil.copytree(data_path("toy-induction-trained"), folder / "model")
        changed(there / "config.json", **values)
        return lambda: interp.load(there)

    return case


for field in ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size"):
    refused(f"{field} of a model", "config.json|could not load")(_model(**{field: 10**7}))
refused("vocabulary of a model", r"config.json.*numbers")(_model(vocab_size=10**9))
refused("layers of a model", r"config.json says num_hidden_layers = 10,000,000")(_model(num_hidden_layers=10**7))
refused("layers and vocabulary of a model", r"num_hidden_layers = 10,000,000")(
    _model(num_hidden_layers=10**7, vocab_size=10**9)
)
refused("layers of a model, a number that is not whole", r"num_hidden_layers")(_model(num_hidden_layers=1e7))
refused("layers of a model, a text", r"num_hidden_layers")(_model(num_hidden_layers="10000000"))


def _other_model(config: dict[str, Any]) -> Case:
    def case(folder: Path) -> Callable[[], Any]:
        import interp
        from interp.models._data import data_path

        there = shutil.copytree(data_path("toy-induction-trained"), folder / "model")
        (there / "config.json").write_text(json.dumps(config))
        return lambda: interp.load(there)

    return case


_SMALL = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2, "vocab_size": 10}
refused("positions of a model", r"config.json describes a model of [\d,]+ numbers")(
    _other_model({"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 10**9})
)
refused("layers under another name", r"config.json says n_layer = 10,000,000")(
    _other_model({"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 10**7, "n_positions": 10})
)
refused("experts of a model", r"config.json")(
    _other_model({"model_type": "mixtral", **_SMALL, "num_key_value_heads": 2, "num_local_experts": 10**7})
)
refused("layers of a decoder", r"config.json describes a model of more than 5,440 modules")(
    _other_model({"model_type": "bart", "d_model": 8, "decoder_layers": 10**7, "decoder_attention_heads": 2})
)


def _indexed(weight_map: Any) -> Case:
    def case(folder: Path) -> Callable[[], Any]:
        import interp
        from interp.models._data import data_path

        there = shutil.copytree(data_path("toy-induction-trained"), folder / "model")
        (there / "model.safetensors").rename(folder / "out.safetensors")
        (there / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return lambda: interp.load(there)

    return case


refused("an index of integers", r"index.json.*weight_map\['a'\] is 3, a text is needed")(_indexed({"a": 3}))
refused("an index that is a list", r"index.json.*weight_map is \['a'\], an object is needed")(_indexed(["a"]))
for outside in ("../out.safetensors", "/etc/hostname", "x/../../out.safetensors", "..\\out.safetensors"):
    refused(f"an index that names {outside}", r"index.json.*which is not inside")(_indexed({"a": outside}))
refused("an index that names no file", r"index.json names no weight files")(_indexed({}))


def _deployed(edit: Callable[[Path], None]) -> Case:
    def case(folder: Path) -> Callable[[], Any]:
        from families import tiny

        from interp import efficiency

        deployed = efficiency.deploy(tiny("llama"))
        efficiency.save(efficiency.make("magnitude", budget=0.5).plan(deployed).made_permanent(deployed), folder)
        edit(folder)
        return lambda: efficiency.load(folder)

    return case


def _about(**values: Any) -> Case:
    return _deployed(lambda folder: changed(folder / "plans.json", **values))


for kind in ("logging", "pipeline", "GoneForCausalLM", "PreTrainedModel", "AutoModelForCausalLM", "", "a.b"):
    refused(f"a saved model of the class {kind!r}", rf"plans.json is of the class '{kind}', which is no causal")(
        _about(**{"class": kind})
    )
refused("a saved model of no class", r"plans.json.*class is None, a text is needed")(_about(**{"class": None}))
refused("plans that are null", r"plans.json.*plans is None, a list is needed")(_about(plans=None))
refused("a plan that is null", r"plans.json.*plans\[0\] is None, an object is needed")(_about(plans=[None]))
refused("layers of a saved model", r"config.json says num_hidden_layers = 10,000,000")(
    _deployed(lambda folder: changed(folder / "config.json", num_hidden_layers=10**7))
)
refused("vocabulary of a saved model", r"plans.json|config.json")(
    _deployed(lambda folder: changed(folder / "config.json", vocab_size=10**9))
)


def _unmarked(folder: Path) -> None:
    """Nobody's digest fits any longer to what is changed afterwards, as where a stranger wrote all files."""
    held = json.loads((folder / "plans.json").read_text())
    held.pop("config_sha256")
    (folder / "plans.json").write_text(json.dumps(held))


for field in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads"):

    def _resized(folder: Path, field: str = field) -> None:
        _unmarked(folder)
        changed(folder / "config.json", **{field: 10**9})

    refused(f"{field} of a saved model without digests", r"1000000000|config.json describes .* numbers")(
        _deployed(_resized)
    )


@refused("a chat template that loops", r"chat template.*takes longer")
def _(folder):
    return _chatting("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")


@refused("a chat template that loops over lists of its own", r"chat template.*it takes")
def _(folder):
    return _chatting("{% set a = [0] * 99999 %}{% for i in a %}{% for j in a %}{% endfor %}{% endfor %}")


@refused("a chat template whose text grows", r"chat template.*takes more than 64 MiB")
def _(folder):
    return _chatting("{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}")


@refused("a chat template of a huge range", r"chat template.*[Rr]ange")
def _(folder):
    return _chatting("{% for i in range(10**9) %}{% endfor %}")


@refused("a chat template that is no template", r"chat template")
def _(folder):
    return _chatting("{% for %}")


@refused("a chat template without what is said", r"chat template")
def _(folder):
    return _chatting("hello")


def _chatting(template: str) -> Callable[[], Any]:
    import interp
    from interp.models._data import data_path

    model = interp.load(data_path("toy-induction-trained"))
    model.tokenizer.chat_template = template
    return lambda: interp.tasks.key_samples(model, 64, 1, 1)


def _gguf(old: bytes, new: bytes) -> Case:
    def case(folder: Path) -> Callable[[], Any]:
        from model_files import write_gguf

        import interp

        path = write_gguf(folder / "x.gguf")
        data = path.read_bytes()
        assert old in data
        at = data.index(old)
        path.write_bytes(data[:at] + new + data[at + len(new) :])
        return lambda: interp.load(path)

    return case


def _number(key: str, value: int) -> Case:
    head = key.encode() + struct.pack("<I", 4)
    return _gguf(head, head + struct.pack("<I", value))


refused("tensors of a GGUF file", r"x.gguf is truncated or damaged: it lists")(
    _gguf(b"GGUF\3\0\0\0", b"GGUF\3\0\0\0" + struct.pack("<Q", 10**9))
)
refused("values of a GGUF file", r"x.gguf is truncated or damaged")(
    _gguf(b"GGUF\3\0\0\0", b"GGUF\3\0\0\0" + struct.pack("<QQ", 20, 10**9))
)
refused("tokens of a GGUF file", r"x.gguf is truncated or damaged: it lists")(
    _gguf(b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokens" + struct.pack("<IIQ", 9, 8, 10**12))
)
refused("layers of a GGUF file", r"x.gguf says llama.block_count = 10,000,000")(_number("llama.block_count", 10**7))
refused("vocabulary of a GGUF file", r"x.gguf describes a model of [\d,]+ numbers")(_number("llama.vocab_size", 10**9))
refused("width of a GGUF file", r"x.gguf")(_number("llama.embedding_length", 10**9))
refused("heads of a GGUF file", r"x.gguf")(_number("llama.attention.head_count", 10**9))


@refused("shapes of a GGUF file", r"x.gguf")
def _(folder):
    head = b"output_norm.weight" + struct.pack("<I", 1)
    return _gguf(head, head + struct.pack("<Q", 10**12))(folder)


@refused("a size in a converted model's manifest", r"model.safetensors is damaged: .* where 1,000,000,000,000 were")
def _(folder):
    return _cached(folder, files={"model.safetensors": {"size": 10**12, "sha256": "0"}})


@refused("a file outside in a converted model's manifest", r"manifest.json.*which is not inside")
def _(folder):
    return _cached(folder, files={"../out": {"size": 1, "sha256": "0"}})


@refused("files in a converted model's manifest that are none", r"manifest.json.*an object is needed")
def _(folder):
    return _cached(folder, files={"model.safetensors": None})


def _cached(folder: Path, **values: Any) -> Callable[[], Any]:
    from interp.models.cache import verify

    (folder / "model.safetensors").write_bytes(b"x")
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "source": {}, **values}))
    return lambda: verify(folder, "obtain it again")


# What is found


def _scores(suffix: str, **values: Any) -> Case:
    def case(folder: Path) -> Callable[[], Any]:
        from saved import KINDS

        import interp

        kind = KINDS["scores, json"]
        path = kind.save(kind.make(0), folder)
        if suffix == ".json":
            changed(path, **values)
            return lambda: interp.results.load(path)
        about = json.loads(path.read_text())
        about.pop("data")
        tensors(folder / "x.safetensors", {"values": [10**6, 10**6]}, b"\0" * 64, interp=json.dumps(about))
        return lambda: interp.results.load(folder / "x.safetensors")

    return case


refused("shape of scores", r"scores.json.*1000000")(_scores(".json", shape=[10**6, 10**6]))
refused("labels of scores", r"scores.json.*1000000")(_scores(".json", coords__layer__shape=[10**12]))
refused("letters of scores' labels", r"scores.json.*U999999999")(
    _scores(".json", coords__layer__dtype="U999999999", coords__layer__data=["a", "b"])
)
refused("shape of scores in safetensors", r"x.safetensors is cut short")(_scores(".safetensors"))


def _kind(name: str, edit: Callable[[Path], None]) -> Case:
    def case(folder: Path) -> Callable[[], Any]:
        from saved import KINDS

        import interp

        path = KINDS[name].save(KINDS[name].make(0), folder / "it")
        edit(path)

        def read() -> Any:
            found = interp.results.load(path)
            return found.to_frame() if hasattr(found, "to_frame") else str(found)

        return read

    return case


def _json(name: str, file: str = "", **values: Any) -> Case:
    return _kind(name, lambda path: changed(path / file if file else path, **values))


refused("arrays of a finding", r"finding.safetensors does not belong to")(
    _kind("finding", lambda path: tensors(path / "finding.safetensors", {"scores": [10**6, 10**6]}))
)
refused("heads of a finding", r"finding.json")(_json("finding", "finding.json", evidence__scores__shape=[10**6, 10**6]))
refused("heads of a circuit", r"circuit.json|heads_per_kv")(_json("circuit", heads_per_kv=0))
refused("scores of a circuit", r"circuit.json")(_json("circuit", edges="x" * 10))
refused("budget of a plan", r"budget")(_json("plan", budget=1e308))
refused("arrays of a graph", r"graph.safetensors")(
    _kind("graph", lambda path: tensors(path, {"weights": [10**12]}, format="interp.attribution-graph/1"))
)
refused("a position in circuit-tracer's graph", r"x.json.*at 1,000,000,000, outside")(
    _json("circuit-tracer's graph", nodes__0__ctx_idx=10**9)
)
refused("a feature of circuit-tracer's graph", r"x.json.*feature is 1000000")(
    _json("circuit-tracer's graph", nodes__0__interp__feature=10**40)
)
refused("heads of EAP-IG's circuit", r"x.json")(_json("EAP-IG's circuit", cfg__n_heads=10**9))
refused("arrays of readings", r"readings")(
    _kind("readings", lambda path: tensors(path / "readings.safetensors", {"features": [10**12]}))
)
refused("quantiles of readings", r"readings.json.*quantiles is 1000000000")(
    _json("readings", "readings.json", about__quantiles=10**9)
)
refused("repetitions of a trade-off", r"tradeoff.json.*repetition")(
    _json("trade-off", "tradeoff.json", values__0__repetition=10**30)
)


def _store(**values: Any) -> Case:
    def case(folder: Path) -> Callable[[], Any]:
        import torch

        from interp.features.activations.shards import read_manifest, write, write_manifest
        from interp.features.activations.store import ActivationStore

        held = {"resid_post.0": torch.ones(4, 3), "row": torch.arange(4), "position": torch.arange(4)}
        shard = write(folder, 0, held, {"resid_post.0": 6.9})
        about = {
            "format": "interp.activations/1",
            "model": "toy",
            "fingerprint": "f",
            "n_tokens": 4,
            "n_shards": 1,
            "batch_tokens": 4,
            "corpus": {"source": "x", "sha256": "0"},
            "places": {"resid_post.0": {"width": 3}},
            "settings": {},
        }
        write_manifest(folder, about, [shard])
        read_manifest(folder)
        changed(folder / "manifest.json", **values)

        def read() -> Any:
            store = ActivationStore.open(folder)
            return [batch for batch, _ in zip(store.batches(2, ["resid_post.0"]), range(2), strict=False)]

        return read

    return case


refused("tokens of a store's shard", r"1,?000,?000,?000|manifest")(_store(shards__0__tokens=10**9))
refused("tokens of a store", r"manifest.json.*n_tokens is 1,000,000,000")(_store(n_tokens=10**9))
refused("shards of a store", r"manifest|1,?000,?000,?000")(_store(n_shards=10**9))
refused("width of a store's place", r"1,?000,?000,?000|manifest")(_store(**{"places__resid_post.0__width": 10**9}))
refused("a shard outside of its store", r"which is not inside")(_store(shards__0__file="../x.safetensors"))


# Texts


@refused("positions of a task", r"x.jsonl, line 1: .*1000000000")
def _(folder):
    return _task(folder, positions={"a": 10**9})


@refused("positions of a task beyond 64 bits", r"x.jsonl, line 1: position 'a' is token 1000000")
def _(folder):
    return _task(folder, positions={"a": 10**30})


@refused("a task's line nested deep", r"x.jsonl, line 1")
def _(folder):
    path = folder / "x.jsonl"
    path.write_text("[" * 100_000)
    return _read_task(path)


@refused("a corpus's line nested deep", r"x.jsonl, line 1")
def _(folder):
    from interp.tasks import documents

    path = folder / "x.jsonl"
    path.write_text("[" * 100_000)
    return lambda: documents(path)


@refused("a corpus's text that is a number", r"x.jsonl, line 1")
def _(folder):
    from interp.tasks import documents

    path = folder / "x.jsonl"
    path.write_text(json.dumps({"text": 10**9}))
    return lambda: documents(path)


def _task(folder: Path, **values: Any) -> Callable[[], Any]:
    path = folder / "x.jsonl"
    pair = {"clean": "t5 t6 t7", "corrupted": "t5 t8 t7", "answer": " t9", "wrong_answer": " t4"}
    path.write_text(json.dumps({**pair, **values}))
    return _read_task(path)


def _read_task(path: Path) -> Callable[[], Any]:
    from families import tiny

    import interp

    model = tiny("llama")
    return lambda: interp.task(path, model)


# The process that reads them


def main(folder: Path) -> None:
    """Reads every case below a limit of memory, and says what came of it."""
    from transformer_lens.model_bridge import TransformerBridge  # noqa: F401

    import interp
    from interp.models._data import data_path

    signal.signal(signal.SIGALRM, stop)
    interp.load(data_path("toy-induction-trained"))  # what is slow to import, is
    answers = {}
    for number, (name, (case, _)) in enumerate(CASES.items()):
        place = folder / str(number)
        place.mkdir()
        read = case(place)
        with contextlib.redirect_stdout(sys.stderr), at_most(MIB << 20):
            signal.alarm(ALARM)
            began, most = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                found = read()
                said = ["nothing", f"it was read: {str(found)[:200]}"]
            except BaseException as error:
                said = [[one.__name__ for one in type(error).__mro__], str(error)]
            signal.alarm(0)
            took = time.process_time() - began
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most
        answers[name] = [*said, took, grown / 1024]
    sys.stdout.write(json.dumps(answers))


def stop(*_: Any) -> None:
    raise TimeoutError(f"not refused in {ALARM} s")


@contextlib.contextmanager
def at_most(size: int) -> Any:
    """Lets the process take so many bytes more than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    code = "import sys, pathlib, test_declared_sizes as here; here.main(pathlib.Path(sys.argv[1]))"
    folder = tmp_path_factory.mktemp("declared")
    done = subprocess.run(
        [sys.executable, "-c", code, folder],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "INTERP_CACHE": str(tmp_path_factory.mktemp("cache")),
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_a_small_file_that_declares_much_is_refused_at_once_and_without_memory(answers, name):
    kinds, message, seconds, mib = answers[name]
    assert "InterpError" in kinds, message
    assert re.search(CASES[name][1], message, re.DOTALL), message
    assert "Error:" not in message
    assert message.count("\n") == 0
    assert seconds < SECONDS
    assert mib < MIB
