"""Tiny random models of each supported family, as ordinary Hugging Face models on a bridge."""

from __future__ import annotations

import contextlib
import functools
import io
import tempfile

import tokenizers
import torch
import transformers as hf
from transformer_lens.model_bridge import TransformerBridge

VOCABULARY = 50
_directory = tempfile.TemporaryDirectory()  # the bridge loads the tokenizer from there a second time

_SIZES = {"vocab_size": VOCABULARY, "max_position_embeddings": 64}
_LLAMA = {**_SIZES, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
_GQA = {**_LLAMA, "num_hidden_layers": 3, "num_key_value_heads": 2}
_GPT = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
_WINDOWED = {
    **_LLAMA,
    "num_hidden_layers": 4,
    "head_dim": 8,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}

FAMILIES = {
    "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, _GQA),
    "gpt2": (hf.GPT2Config, hf.GPT2LMHeadModel, _GPT),
    "neox": (hf.GPTNeoXConfig, hf.GPTNeoXForCausalLM, {**_LLAMA, "num_hidden_layers": 3}),
    "neox-sequential": (
        hf.GPTNeoXConfig,
        hf.GPTNeoXForCausalLM,
        {**_LLAMA, "num_hidden_layers": 3, "use_parallel_residual": False},
    ),
    "gemma3": (hf.Gemma3TextConfig, hf.Gemma3ForCausalLM, {**_WINDOWED, "num_key_value_heads": 1}),
    "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM, _GQA),
    "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM, {**_GQA, "head_dim": 8}),
    "gemma2": (hf.Gemma2Config, hf.Gemma2ForCausalLM, {**_WINDOWED, "num_key_value_heads": 2}),
    "mistral": (hf.MistralConfig, hf.MistralForCausalLM, {**_GQA, "sliding_window": 4}),
    "phi3": (hf.Phi3Config, hf.Phi3ForCausalLM, {**_GQA, "pad_token_id": 0}),
}

_PADDED = {**_GQA, "pad_token_id": 3}
_MHA = {**_LLAMA, "num_hidden_layers": 3}
_FALCON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_OPT = {**_SIZES, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
_GPT_NEO = {
    **_SIZES,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_layers": 4,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 2]],
    "window_size": 4,
}
_GRANITE = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.4,
    "attention_multiplier": 0.2,
}
_COHERE = {**_PADDED, "logit_scale": 0.5}
_EXPERTS = {**_PADDED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

MORE = {
    "gemma": (hf.GemmaConfig, hf.GemmaForCausalLM, {**_GQA, "head_dim": 8}),
    "gpt-bigcode": (hf.GPTBigCodeConfig, hf.GPTBigCodeForCausalLM, _GPT),
    "starcoder2": (hf.Starcoder2Config, hf.Starcoder2ForCausalLM, _GQA),
    "olmo": (hf.OlmoConfig, hf.OlmoForCausalLM, _PADDED),
    "olmo2": (hf.Olmo2Config, hf.Olmo2ForCausalLM, _PADDED),
    "olmo3": (hf.Olmo3Config, hf.Olmo3ForCausalLM, {**_PADDED, "sliding_window": 4}),
    "phi2": (hf.PhiConfig, hf.PhiForCausalLM, _MHA),
    "gptj": (hf.GPTJConfig, hf.GPTJForCausalLM, {**_GPT, "rotary_dim": 4}),
    "falcon": (hf.FalconConfig, hf.FalconForCausalLM, _FALCON),
    "opt": (hf.OPTConfig, hf.OPTForCausalLM, {**_OPT, "word_embed_proj_dim": 32}),
    "gpt-neo": (hf.GPTNeoConfig, hf.GPTNeoForCausalLM, _GPT_NEO),
    "smollm3": (hf.SmolLM3Config, hf.SmolLM3ForCausalLM, {**_PADDED, "no_rope_layer_interval": 2}),
    "granite": (hf.GraniteConfig, hf.GraniteForCausalLM, {**_GQA, **_GRANITE}),
    "cohere": (hf.CohereConfig, hf.CohereForCausalLM, _COHERE),
    "cohere-qk-norm": (hf.CohereConfig, hf.CohereForCausalLM, {**_COHERE, "use_qk_norm": True}),
    "cohere2": (
        hf.Cohere2Config,
        hf.Cohere2ForCausalLM,
        {**_COHERE, "sliding_window": 4, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"]},
    ),
    "stablelm": (hf.StableLmConfig, hf.StableLmForCausalLM, {**_GQA, "partial_rotary_factor": 0.5}),
    "stablelm-parallel": (
        hf.StableLmConfig,
        hf.StableLmForCausalLM,
        {**_GQA, "partial_rotary_factor": 0.5, "use_parallel_residual": True, "qk_layernorm": True},
    ),
    "mixtral": (hf.MixtralConfig, hf.MixtralForCausalLM, {**_GQA, "num_local_experts": 4}),
    "qwen2-moe": (hf.Qwen2MoeConfig, hf.Qwen2MoeForCausalLM, {**_EXPERTS, "shared_expert_intermediate_size": 40}),
    "qwen3-moe": (hf.Qwen3MoeConfig, hf.Qwen3MoeForCausalLM, {**_EXPERTS, "head_dim": 8}),
    "olmoe": (hf.OlmoeConfig, hf.OlmoeForCausalLM, _EXPERTS),
    "gpt-oss": (
        hf.GptOssConfig,
        hf.GptOssForCausalLM,
        {
            **_PADDED,
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}
"""Families that the graph accepts, besides `FAMILIES`, which every test of families runs on."""

UNSUPPORTED = {
    "opt-350m": (
        hf.OPTConfig,
        hf.OPTForCausalLM,
        {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    ),
    "falcon-40b": (
        hf.FalconConfig,
        hf.FalconForCausalLM,
        {**_FALCON, "num_kv_heads": 2, "new_decoder_architecture": True},
    ),
    "falcon-rw": (
        hf.FalconConfig,
        hf.FalconForCausalLM,
        {**_FALCON, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "codegen": (hf.CodeGenConfig, hf.CodeGenForCausalLM, {**_GPT, "rotary_dim": 4}),
    "bloom": (
        hf.BloomConfig,
        hf.BloomForCausalLM,
        {"vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    ),
    "mpt": (
        hf.MptConfig,
        hf.MptForCausalLM,
        {"vocab_size": VOCABULARY, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    ),
    "mamba": (
        hf.MambaConfig,
        hf.MambaForCausalLM,
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2},
    ),
}
"""Families that are refused by the name of a part, or that the bridge can't load."""


def hugging_face_model(family: str, seed: int = 0, **changes):
    """A tiny random model whose weights are large enough for attention to be far from uniform."""
    config_class, model_class, settings = {**FAMILIES, **MORE, **UNSUPPORTED}[family]
    config = config_class(**{**settings, **changes})
    config.architectures = [model_class.__name__]
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn_like(parameter)
            else:
                parameter *= 8
    return model


@functools.cache
def tokenizer():
    """A word-level tokenizer over t0 .. t49."""
    words = {f"t{i}": i for i in range(VOCABULARY)}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="t0"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"bos_token": "t1", "eos_token": "t2", "pad_token": "t3", "unk_token": "t0"}
    hf.PreTrainedTokenizerFast(tokenizer_object=core, **special).save_pretrained(_directory.name)
    return hf.AutoTokenizer.from_pretrained(_directory.name)


def boot(model) -> TransformerBridge:
    """A bridge around a Hugging Face model."""
    with contextlib.redirect_stdout(io.StringIO()):
        return TransformerBridge.boot_transformers("tiny", hf_model=model, tokenizer=tokenizer())


def tiny(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> TransformerBridge:
    """A bridge around a tiny random model of the family."""
    model = boot(hugging_face_model(family, seed, **changes))
    model.original_model.to(dtype)
    return model
