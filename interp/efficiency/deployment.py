"""From the model that is analysed to the model that is used: an ordinary Hugging Face model on the same weights.

The bridge computes attention in its own way, so that hooks can see it; plans act on the Hugging Face model, whose
caches, attention functions and modules can be replaced.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import init_empty_weights
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedModel

from interp.engine.identity import identity
from interp.engine.parts import on_one_device, without_hooks
from interp.engine.precision import in_float32
from interp.errors import UsageError
from interp.models._origin import origin, remember
from interp.upstream import WRAPPER, prefer_fused

__all__ = ["Deployment", "deploy", "deployment"]


_TOLERANCE = 1e-3
"""Of log-probabilities, as a share of the largest: sums in other orders, through activations of 20,000."""


@dataclass
class Deployment:
    """What a deployed model knows of where it came from; see `deployment`.

    Args:
        name: The model's name.
        fingerprint: Of the weights that it was deployed with.
        plans: The plans in force, in the order in which they were applied.
        layers: The original number of each block that is left.
        groups: For each block that is left, the original numbers of the key-value heads that are left.
    """

    name: str
    fingerprint: str
    layers: list[int]
    groups: list[list[int]]
    plans: list[Any] = field(default_factory=list)


def deploy(model: TransformerBridge) -> PreTrainedModel:
    """The bridge's model as a plain Hugging Face model that shares its weights.

    It has no hooks and runs scaled-dot-product attention. A change of a weight in place is seen by both.

    Args:
        model: Any bridge whose weights are the Hugging Face model's own (nothing folded or centred).

    Returns:
        The model, in evaluation mode, with the bridge's tokenizer as ``model.tokenizer``.

    Raises:
        UsageError: Not a bridge, one whose weights no longer have the names of the Hugging Face model, or one that
            computes something else than the model on these weights, as one in compatibility mode does.

    Example:
        >>> hf = interp.deploy(model)
        >>> with plan.applied(hf):
        ...     hf.generate(**hf.tokenizer("Once upon a time", return_tensors="pt"))
    """
    if not isinstance(model, TransformerBridge):
        raise UsageError(f"deploy takes a TransformerBridge, as interp.load gives it; got {type(model).__name__}")
    without_hooks(model, "the deployed model")
    on_one_device(model)
    original: Any = model.original_model
    weights = {name.replace(WRAPPER, ""): tensor for name, tensor in _weights(original).items()}
    plain: Any = skeleton(original.config, type(original))
    wanted = dict(plain.named_parameters())
    if missing := sorted(set(wanted) - set(weights)):
        raise UsageError(f"this bridge's weights lack {missing[0]}; deploy a bridge as interp.load makes it")
    for name in wanted:
        owner, _, last = name.rpartition(".")
        setattr(plain.get_submodule(owner), last, weights[name])
    plain.tie_weights()
    plain.to(next(original.parameters()).device)
    plain.eval()
    _compare(model, plain)
    plain.tokenizer = model.tokenizer
    plain.generation_config = copy.deepcopy(original.generation_config)
    cfg = model.cfg
    kv_heads = getattr(cfg, "n_key_value_heads", None) or cfg.n_heads
    plain.deployment = Deployment(
        str(cfg.model_name),
        identity(model),
        list(range(cfg.n_layers)),
        [list(range(kv_heads)) for _ in range(cfg.n_layers)],
    )
    if (where := origin(model)) is not None:
        remember(plain, where)
    return plain


def deployment(model: PreTrainedModel) -> Deployment:
    """Where a deployed model came from and which plans are in force.

    Raises:
        UsageError: The model was not deployed.
    """
    found = getattr(model, "deployment", None)
    if not isinstance(found, Deployment):
        kind = "bridge" if isinstance(model, TransformerBridge) else type(model).__name__
        raise UsageError(f"plans act on a deployed model, got a {kind}; make one with interp.deploy(bridge)")
    return found


def skeleton(config: Any, kind: type[PreTrainedModel]) -> PreTrainedModel:
    """A model with all buffers and no weights, which computes attention by torch's fused function where it can."""
    config = copy.deepcopy(config)
    prefer_fused(config, kind)
    with init_empty_weights(include_buffers=False):
        return kind(config)


@torch.no_grad()
def _compare(model: TransformerBridge, plain: PreTrainedModel) -> None:
    """Refuses a bridge that does not give the log-probabilities of the model deployed from it, on a few tokens.

    In float32 where the weights are in half precision, as the walk is compared with the bridge on its first use.
    """
    tokens = torch.randint(0, model.cfg.d_vocab, (1, 8), generator=torch.Generator().manual_seed(0)).to(plain.device)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with in_float32(model), in_float32(plain):
            theirs, run = model(tokens).float().log_softmax(-1), plain
            ours = run(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)
    finally:
        for module in training:
            module.training = True
    difference = float((ours - theirs).abs().max())
    if not difference <= _TOLERANCE * max(float(theirs.abs().max()), 1.0):
        folded = getattr(model, "compatibility_mode", False)
        why = "compatibility mode folds and centres its weights" if folded else "it was changed since it was loaded"
        raise UsageError(
            f"this bridge no longer computes what the Hugging Face model does with the same weights (log-probabilities "
            f"differ by up to {difference:.2g}): {why}; deploy a bridge as interp.load makes it"
        )


def _weights(model: Any) -> dict[str, Any]:
    """Every parameter, tied ones under each of their names."""
    return dict(model.named_parameters(remove_duplicate=False))
