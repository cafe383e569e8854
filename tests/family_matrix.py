"""What works with which family: every column is a check against the plain Hugging Face model, on tiny random weights.

`python tests/family_matrix.py` prints the table that `docs/families.md` has; with ``--write`` it writes it there.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from caches import cache_of, using
from families import FAMILIES, MORE, UNSUPPORTED, boot, hugging_face_model
from prompts import random_task
from torch import Tensor, nn
from transformers import DynamicCache

from interp.circuits.exact import existing
from interp.efficiency import deploy, deployment
from interp.efficiency.kv_cache import FullCache, StreamingCache
from interp.efficiency.kv_cache.rope import rotation
from interp.efficiency.pruning import PruningPlan
from interp.efficiency.sparse_attention import MoBA
from interp.engine import run, verified
from interp.engine.edges import EdgeWalk, record_writes
from interp.engine.rules import Rules
from interp.errors import UsageError
from interp.graph import Node
from interp.patching import activation, attribution, groups

WORKS = "yes"
PAGE = Path(__file__).parents[1] / "docs" / "families.md"
TOKENS = torch.randint(5, 50, (2, 11), generator=torch.Generator().manual_seed(1))
LONG = torch.randint(5, 50, (1, 40), generator=torch.Generator().manual_seed(2))
GREEDY = {"do_sample": False, "pad_token_id": 3, "eos_token_id": None}
ACTIVATIONS = ("act_fn", "act", "activation_fn", "activation")


class Unloaded(Exception):
    """The bridge can't load the family, or computes something else than it does."""


class Tried:
    """One family: a bridge, and the plain model of the same weights."""

    def __init__(self, family: str) -> None:
        self.family, self.task = family, random_task(n=2)
        self.plain = hugging_face_model(family)

    @cached_property
    def bridge(self) -> Any:
        """The bridge around a second model of the same weights.

        Raises:
            Unloaded: There is none; the message is the bridge's own.
        """
        try:
            bridge = boot(hugging_face_model(self.family))
            with torch.no_grad():
                theirs, ours = bridge(TOKENS), self.logits(TOKENS)
        except (RuntimeError, AttributeError, ValueError, TypeError) as error:
            raise Unloaded(str(error).splitlines()[0]) from error
        if not close(theirs, ours, 1e-3):
            raise Unloaded(f"its logits differ from the model's by up to {float((theirs - ours).abs().max()):.2g}")
        return bridge

    @cached_property
    def parts(self) -> Any:
        """The parts that are walked."""
        return verified(self.bridge)

    @cached_property
    def deployed(self) -> Any:
        """The deployed model."""
        return deploy(self.bridge)

    def logits(self, tokens: Tensor) -> Tensor:
        """Of the plain model."""
        return self.plain(tokens, use_cache=False).logits

    def module(self, component: Any) -> nn.Module:
        """The plain model's module that a component of the bridge wraps."""
        wanted = component.original_component
        parts = self.bridge.original_model.named_modules(remove_duplicate=False)
        names = (
            re.sub(r"\._original_component|_original_component\.", "", name) for name, part in parts if part is wanted
        )
        known = dict(self.plain.named_modules())
        return next(known[name] for name in names if name in known)

    def output(self, layer: int) -> nn.Module:
        """Attention's output projection, whose input is z."""
        return self.module(self.bridge.blocks[layer].attn.o)

    def down(self, layer: int) -> nn.Module:
        """The MLP's output projection, whose input is what the neurons hold."""
        return self.module(self.bridge.blocks[layer].mlp.out)

    @contextmanager
    def entering(self, changes: dict[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
        """Within it, what enters modules of the plain model is changed."""

        def hook(module: nn.Module, args: tuple, kwargs: dict) -> Any:
            name = None if args else next(iter(kwargs))
            given = args[0] if args else kwargs[name]
            new = changes[module](given.reshape(len(self.task), -1, given.shape[-1])).reshape(given.shape)
            return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, name: new})

        with ExitStack() as stack:
            for module in changes:
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield

    def seen(self, tokens: Tensor, modules: list[nn.Module]) -> tuple[list[Tensor], Tensor]:
        """What enters some modules of the plain model, as "row pos channel" that gradients flow to, and the logits."""
        found: dict[nn.Module, Tensor] = {}

        def keep(module: nn.Module) -> Callable[[Tensor], Tensor]:
            def kept(x: Tensor) -> Tensor:
                found[module] = x if x.requires_grad else x.detach().requires_grad_()
                return found[module]

            return kept

        with torch.enable_grad(), self.entering({module: keep(module) for module in modules}):
            logits = self.logits(tokens)
        return [found[module] for module in modules], logits


def close(ours: Tensor, theirs: Tensor, relative: float) -> bool:
    """Whether two tensors agree to a part of the largest number."""
    return bool((ours - theirs).abs().max() <= relative * theirs.abs().max().clamp(min=1e-6))


def demand(ours: Any, theirs: Any, relative: float) -> None:
    """Raises an AssertionError where two arrays differ by more than a part of the largest number, or say nothing."""
    ours, theirs = (torch.as_tensor(x, dtype=torch.float64) for x in (ours, theirs))
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    assert theirs.abs().max() > 1e-4, "nothing happened"
    worst = float((ours - theirs).abs().max() / theirs.abs().max())
    assert worst <= relative, f"off by {worst:.2g}"


@torch.no_grad()
def walk(tried: Tried) -> None:
    """The walk's logits are the model's."""
    demand(tried.parts.logits(run(tried.parts, TOKENS, set())[1]), tried.logits(TOKENS), 1e-5)


@torch.no_grad()
def patching(tried: Tried) -> None:
    """Exact patching of heads, neurons (where there are no experts) and the stream is what hooks on the model give."""
    model, task, graph = tried.bridge, tried.task, tried.parts.graph
    layers = range(graph.n_layers)
    base = task.per_example(tried.logits(task.corrupted))

    def effect(module: nn.Module, clean: Tensor, at: Any) -> float:
        def patched(x: Tensor) -> Tensor:
            x = x.clone()
            x[at] = clean.detach()[at]
            return x

        with tried.entering({module: patched}):
            return float((task.per_example(tried.logits(task.corrupted)) - base).mean())

    outputs, blocks = [tried.output(layer) for layer in layers], [tried.module(model.blocks[n]) for n in layers]
    clean, _ = tried.seen(task.clean, [*outputs, *blocks])
    heads = [
        [
            effect(outputs[layer], clean[layer], (..., slice(head * graph.d_head, (head + 1) * graph.d_head)))
            for head in range(graph.n_heads)
        ]
        for layer in layers
    ]
    demand(activation(model, task, "heads").values, heads, 1e-3)
    stream = [
        [effect(blocks[n], clean[graph.n_layers + n], (slice(None), at)) for at in range(task.clean.shape[1])]
        for n in layers
    ]
    demand(activation(model, task, "resid_pre", by_position=True).values, stream, 1e-3)
    if graph.n_experts:  # whose neurons are inside them
        return
    downs, indices = [tried.down(layer) for layer in layers], [0, 5, 17]
    posts, _ = tried.seen(task.clean, downs)
    neurons = [[effect(downs[n], posts[n], (..., index)) for index in indices] for n in layers]
    demand(activation(model, task, "neurons", indices=indices).values, neurons, 1e-3)


@torch.no_grad()
def edges(tried: Tried) -> None:
    """Replacing all edges gives the other run, also where each query head has keys and values of its own."""
    task, parts = tried.task, tried.parts
    for ungrouped in (False, True):
        base = record_writes(parts, task.clean, ungrouped)
        other = record_writes(parts, task.corrupted, ungrouped).nodes
        edge_walk = EdgeWalk(parts, base, other, 0, ungrouped)
        all_of_them = edge_walk.replaced(existing(parts.graph, ungrouped))[0]
        demand(parts.logits(all_of_them), tried.logits(task.corrupted), 1e-4)


def _by_head(tried: Tried, modules: list[nn.Module]) -> Tensor:
    """Gradient times difference of what enters modules, by layer and head."""
    clean, _ = tried.seen(tried.task.clean, modules)
    corrupted, logits = tried.seen(tried.task.corrupted, modules)
    back = torch.autograd.grad(tried.task.per_example(logits).mean(), corrupted)
    products = [((a - b) * g).detach() for a, b, g in zip(clean, corrupted, back, strict=True)]
    return torch.stack([x.unflatten(-1, (tried.parts.graph.n_heads, -1)).sum((0, 1, 3)) for x in products])


def gradients(tried: Tried) -> None:
    """Attribution patching of heads is autograd's gradient times the difference."""
    modules = [tried.output(layer) for layer in range(tried.parts.graph.n_layers)]
    demand(attribution(tried.bridge, tried.task, "heads").values, _by_head(tried, modules), 1e-3)


class _Identity(nn.Module):
    """An activation whose backward pass is that of a factor."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.function(x.detach()) / x.detach())


def relevance(tried: Tried) -> None:
    """RelP's rule for activations is autograd on a model whose activations are x (f(x) / x), the factor detached."""
    modules = [tried.output(layer) for layer in range(tried.parts.graph.n_layers)]
    ours = attribution(tried.bridge, tried.task, "heads", rules=Rules(activation="identity")).values
    before = _by_head(tried, modules)
    with identity_activations(tried.plain):
        theirs = _by_head(tried, modules)
    linear = "relu" in str(getattr(tried.plain.config, "activation_function", ""))  # OPT: x (f(x) / x) has f's slope
    assert close(before, theirs, 1e-2) == linear, "the rule changes nothing"
    demand(ours, theirs, 1e-3)


@contextmanager
def identity_activations(model: nn.Module) -> Iterator[None]:
    """Within it, the model's activation functions are `_Identity`."""
    found = [
        (module, name, getattr(module, name))
        for module in list(model.modules())
        for name in ACTIVATIONS
        if callable(getattr(module, name, None))
    ]
    gates = [module for module in model.modules() if hasattr(module, "_apply_gate") and hasattr(module, "alpha")]
    try:
        for module, name, function in found:
            delattr(module, name)
            setattr(module, name, _Identity(function))
        for module in gates:
            module._apply_gate = _identity_gate(module)
        yield
    finally:
        for module, name, function in found:
            delattr(module, name)
            setattr(module, name, function)
        for module in gates:
            del module._apply_gate


def _identity_gate(experts: Any) -> Callable[[Tensor], Tensor]:
    """GPT-OSS's gate, whose activation function has the identity rule."""

    def function(x: Tensor) -> Tensor:
        x = x.clamp(max=experts.limit)
        return x * torch.sigmoid(x * experts.alpha)

    def gate(both: Tensor) -> Tensor:
        left, right = both[..., ::2], both[..., 1::2]
        return (right.clamp(-experts.limit, experts.limit) + 1) * _Identity(function)(left)

    return gate


class Mixture:
    """One mixture of the plain model, which can be told what its router says and what it writes.

    Args:
        block: The MLP's module.
    """

    def __init__(self, block: Any) -> None:
        self.block = block
        self.router = getattr(block, "gate", None) or block.router
        self.count = len(block.experts.gate_up_proj)

    def weights(self, x: Tensor) -> Tensor:
        """The router's weights "token expert" of inputs "token d_model"."""
        _, weights, chosen = self.router(x)
        return torch.zeros(len(x), self.count).scatter(1, chosen, weights)

    def write(self, x: Tensor, weights: Tensor) -> Tensor:
        """What the experts add with some weights "token expert"."""
        numbers = torch.arange(self.count).expand(len(x), -1)
        return type(self.block.experts).forward(self.block.experts, x, numbers, weights)

    @contextmanager
    def saying(self, change: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
        """Within it, the experts write what `change` makes of their input and of the router's weights."""

        def forward(x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
            return change(x, torch.zeros(len(x), self.count).scatter(1, chosen, weights))

        self.block.experts.forward = forward
        try:
            yield
        finally:
            del self.block.experts.forward


def _mixtures(tried: Tried) -> list[Mixture]:
    tried.parts.graph.check(Node("expert", 0))
    return [Mixture(tried.module(block.mlp)) for block in tried.bridge.blocks]


def experts(tried: Tried) -> None:
    """Patching and attribution of experts and of router weights are what changes in the model, and autograd, give;
    with the router held, nothing flows back through it."""
    model, task, mixtures = tried.bridge, tried.task, _mixtures(tried)
    routed, layers = range(mixtures[0].count), range(len(mixtures))
    seen: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
    for name, tokens in (("clean", task.clean), ("corrupted", task.corrupted)):
        with ExitStack() as stack, torch.no_grad():
            for layer, one in enumerate(mixtures):

                def keep(x: Tensor, weights: Tensor, one: Mixture = one, at: Any = (name, layer)) -> Tensor:
                    seen[at] = x, weights
                    return one.write(x, weights)

                stack.enter_context(one.saying(keep))
            tried.logits(tokens)
    base = float(task.per_example(tried.logits(task.corrupted)).mean().detach())

    @torch.no_grad()
    def effect(layer: int, change: Callable[[Tensor, Tensor], Tensor]) -> float:
        with mixtures[layer].saying(change):
            return float(task.per_example(tried.logits(task.corrupted)).mean()) - base

    def only(weights: Tensor, expert: int) -> Tensor:
        return weights * (torch.arange(weights.shape[1]) == expert)

    def replaced(layer: int, expert: int) -> tuple[float, float]:
        """The effect of an expert's clean write, and of its clean weight."""
        one, (x, weights) = mixtures[layer], seen["clean", layer]
        theirs, mine = one.write(x, only(weights, expert)), only(weights, expert)
        return (
            effect(layer, lambda x, w: one.write(x, w - only(w, expert)) + theirs),
            effect(layer, lambda x, w: one.write(x, w - only(w, expert) + mine)),
        )

    wanted = torch.tensor([[replaced(layer, expert) for expert in routed] for layer in layers])
    for at, nodes in enumerate(("experts", "router")):
        demand(activation(model, task, nodes, indices=list(routed)).values, wanted[..., at], 1e-3)
    whole = [
        effect(layer, lambda x, w, layer=layer: mixtures[layer].write(x, seen["clean", layer][1])) for layer in layers
    ]
    nodes = [[f"m{layer}.e{expert}.router" for expert in routed] for layer in layers]
    demand(groups(model, task, nodes).values, whole, 1e-3)

    back: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for layer, one in enumerate(mixtures):

            def kept(x: Tensor, weights: Tensor, one: Mixture = one, layer: int = layer) -> Tensor:
                back[layer] = one.write(x, weights)
                back[layer].retain_grad()
                return back[layer]

            stack.enter_context(one.saying(kept))
        task.per_example(tried.logits(task.corrupted)).mean().backward()
    tried.plain.zero_grad()
    theirs = torch.empty(2, len(mixtures), len(routed))
    for layer, one in enumerate(mixtures):
        (x, clean_w), (y, w) = seen["clean", layer], seen["corrupted", layer]
        for expert in routed:
            with torch.no_grad():
                change = one.write(x, only(clean_w, expert)) - one.write(y, only(w, expert))
                unit = one.write(y, only(torch.ones_like(w), expert)) * (clean_w - w)[:, expert, None]
                theirs[:, layer, expert] = torch.stack([(part * back[layer].grad).sum() for part in (change, unit)])
    for at, kind in enumerate(("experts", "router")):
        demand(attribution(model, task, kind, indices=list(routed)).values, theirs[at], 1e-3)

    modules = [tried.output(layer) for layer in layers]
    free = _by_head(tried, modules)
    with ExitStack() as stack:
        for one in mixtures:
            stack.enter_context(one.saying(lambda x, w, one=one: one.write(x, w.detach())))
            if (gate := getattr(one.block, "shared_expert_gate", None)) is not None:
                stack.callback(gate.register_forward_hook(lambda module, args, out: out.detach()).remove)
        held = _by_head(tried, modules)
    assert not close(free, held, 1e-2), "holding the router changes nothing"
    demand(attribution(model, task, "heads", rules=Rules(router="constant")).values, held, 1e-3)


@torch.no_grad()
def experts_removed(tried: Tried) -> None:
    """A model without some experts is the model whose router never chooses them, and generates."""
    mixtures, model = _mixtures(tried), tried.deployed
    gone = {0: (1,), 1: tuple(range(1, mixtures[1].count)), 2: (0, 3)}
    with ExitStack() as stack:
        for layer, numbers in gone.items():
            router, numbers = mixtures[layer].router, torch.tensor(numbers)
            stack.callback(setattr, router, "top_k", router.top_k)
            router.top_k = min(router.top_k, mixtures[layer].count - len(numbers))
            stack.callback(router.__dict__.pop, "forward")
            router.forward = _masked(router, numbers)
        wanted = tried.logits(TOKENS)
    with _plan(model, experts=tuple(gone.items())).applied(model):
        demand(model(TOKENS).logits, wanted, 1e-4)
        assert _generated(model).isfinite().all()
    demand(model(TOKENS).logits, tried.logits(TOKENS), 1e-5)


def _masked(router: Any, gone: Tensor) -> Callable[[Tensor], Any]:
    """A router whose logits of some experts are minus infinity."""
    original = type(router).forward

    def forward(x: Tensor) -> Any:
        with _without_logits(gone):
            return original(router, x)

    return forward


class _without_logits:
    """Within it, `torch.nn.functional.linear` gives minus infinity for some outputs."""

    def __init__(self, gone: Tensor) -> None:
        self.gone = gone

    def __enter__(self) -> None:
        self.before = torch.nn.functional.linear
        torch.nn.functional.linear = lambda *args: self.before(*args).index_fill(-1, self.gone, -torch.inf)

    def __exit__(self, *error: Any) -> None:
        torch.nn.functional.linear = self.before


def _plan(model: Any, **removed: Any) -> PruningPlan:
    found = deployment(model)
    return PruningPlan(model=found.name, fingerprint=found.fingerprint, method="by hand", budget=0.5, **removed)


def _without(columns: list[int]) -> Callable[[Tensor], Tensor]:
    def zeroed(x: Tensor) -> Tensor:
        return x.index_fill(-1, torch.tensor(columns), 0)

    return zeroed


@torch.no_grad()
def heads_removed(tried: Tried) -> None:
    """A model without some heads is the model in which what they give is zero."""
    model, graph = tried.deployed, tried.parts.graph
    per = graph.n_heads // graph.n_kv_heads
    one = range(per) if graph.n_kv_heads > 1 else range(1)
    each = range(0, graph.n_heads, per) if per > 1 else range(1, 3)
    gone = {0: tuple(one), 1: tuple(each), 2: tuple(range(graph.n_heads))}
    changes = {}
    for layer, heads in gone.items():
        columns = [head * graph.d_head + at for head in heads for at in range(graph.d_head)]
        changes[tried.output(layer)] = _without(columns)
    with tried.entering(changes):
        wanted = tried.logits(TOKENS)
    with _plan(model, heads=tuple(gone.items())).applied(model):
        demand(model(TOKENS).logits, wanted, 1e-4)


@torch.no_grad()
def neurons_removed(tried: Tried) -> None:
    """A model without some neurons is the model in which they hold zero."""
    model, width = tried.deployed, tried.parts.graph.d_mlp
    if tried.parts.graph.n_experts:
        with _plan(model, neurons=((0, (0,)),)).applied(model):
            raise AssertionError("neurons inside experts were cut")
    gone = {0: (0, 5, 17), 1: tuple(range(1, width, 2)), 2: tuple(range(width))}
    with tried.entering({tried.down(layer): _without(list(neurons)) for layer, neurons in gone.items()}):
        wanted = tried.logits(TOKENS)
    with _plan(model, neurons=tuple(gone.items())).applied(model):
        demand(model(TOKENS).logits, wanted, 1e-4)


@torch.no_grad()
def block_removed(tried: Tried) -> None:
    """A model without a block is the model in which the block gives back what it gets, with a cache and without."""
    model = tried.deployed
    block = tried.module(tried.bridge.blocks[1])
    handle = block.register_forward_hook(
        lambda module, args, kwargs, out: (
            (args or tuple(kwargs.values()))[0]
            if isinstance(out, Tensor)
            else ((args or tuple(kwargs.values()))[0], *out[1:])
        ),
        with_kwargs=True,
    )
    try:
        wanted = tried.logits(TOKENS)
    finally:
        handle.remove()
    with _plan(model, blocks=(1,)).applied(model):
        demand(model(TOKENS).logits, wanted, 1e-4)
        generated = model.generate(TOKENS, max_new_tokens=4, **GREEDY)
        again = model(generated[:, :-1]).logits[:, TOKENS.shape[1] - 1 :].argmax(-1)
        assert torch.equal(generated[:, TOKENS.shape[1] :], again)


def _generated(model: Any, tokens: Tensor = LONG) -> Tensor:
    out = model.generate(tokens, max_new_tokens=6, output_logits=True, return_dict_in_generate=True, **GREEDY)
    return torch.stack(out.logits, 1)


@torch.no_grad()
def cache(tried: Tried) -> None:
    """A cache that keeps everything generates as the model does, and one of half the bytes runs."""
    model = tried.deployed
    wanted = _generated(tried.plain)
    with FullCache(prefill_chunk=7).plan(model).applied(model):
        demand(_generated(model), wanted, 1e-4)
    plan = StreamingCache(budget=0.6, length=LONG.shape[1], sinks=2).plan(model)
    with plan.applied(model):
        assert _generated(model).isfinite().all()
        held = cache_of(model(LONG)).bytes()
    assert held <= plan.ledger(model, LONG.shape[1]).cache_bytes.before


@torch.no_grad()
def moved(tried: Tried) -> None:
    """Keys moved along the text are the keys of a token that stands there: of one token over and over."""
    model, kept = tried.deployed, DynamicCache()
    for positions in ("kept", "reindexed"):
        plan = StreamingCache(budget=0.6, length=LONG.shape[1], sinks=2, positions=positions).plan(model)
        with plan.applied(model):
            assert _generated(model).isfinite().all()
    model(torch.full((1, 4), 7), **using(kept))
    for number, layer in enumerate(kept.layers):
        for by in (1, 3):
            moved = rotation(model, number)(layer.keys[:, :, :1], by)
            demand(moved, layer.keys[:, :, by : by + 1], 1e-4)


@torch.no_grad()
def prefill(tried: Tried) -> None:
    """Sparse prefill that keeps every block is dense, and one that keeps few runs."""
    model, wanted = tried.deployed, _generated(tried.plain)
    plan = MoBA(top_k=8, length=LONG.shape[1], block=8).plan(model)
    plan = type(plan)(**{**vars(plan), "rules": ({"pattern": "moba", "top_k": 8},)})
    with plan.applied(model):
        demand(_generated(model), wanted, 1e-4)
    with MoBA(budget=0.75, length=LONG.shape[1], block=8).plan(model).applied(model):
        assert _generated(model).isfinite().all()


@torch.no_grad()
def deployed(tried: Tried) -> None:
    """The deployed model computes what the model does, and generates the same."""
    demand(tried.deployed(TOKENS).logits, tried.logits(TOKENS), 1e-5)
    demand(_generated(tried.deployed), _generated(tried.plain), 1e-4)


COLUMNS: dict[str, Callable[[Tried], None]] = {
    "walk": walk,
    "patching": patching,
    "edges": edges,
    "attribution": gradients,
    "relevance": relevance,
    "deployed": deployed,
    "heads off": heads_removed,
    "neurons off": neurons_removed,
    "block off": block_removed,
    "cache": cache,
    "moved keys": moved,
    "prefill": prefill,
    "experts": experts,
    "experts off": experts_removed,
}


def cell(tried: Tried, column: str) -> str:
    """`WORKS`, or why a column is refused.

    Raises:
        AssertionError: It gives wrong numbers.
    """
    try:
        COLUMNS[column](tried)
    except UsageError as error:
        return str(error)
    except Unloaded as error:
        return f"TransformerLens can't load it: {error}"
    return WORKS


def families() -> list[str]:
    """Every row, those that are refused last."""
    return [*FAMILIES, *MORE, *UNSUPPORTED]


def table(cells: dict[tuple[str, str], str]) -> str:
    """The page in Markdown."""
    reasons = list(dict.fromkeys(text for text in cells.values() if text != WORKS))
    number = {reason: f"[{at}]" for at, reason in enumerate(reasons, start=1)}
    lines = [
        "# Families",
        "",
        "Made by `python tests/family_matrix.py --write`, and held against the code by `tests/test_families.py`.",
        "Each cell is a check on tiny random weights against the plain Hugging Face model, its hooks or autograd; a",
        "number stands for the message that refuses it, below.",
        "",
        *(f"- **{name}**: {check.__doc__.strip()}" for name, check in COLUMNS.items() if check.__doc__),
        "",
        "| family | " + " | ".join(COLUMNS) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    for family in families():
        row = [cells[family, column] for column in COLUMNS]
        lines.append(f"| {family} | " + " | ".join(number.get(text, "✓") for text in row) + " |")
    lines += ["", *(f"{at}. {reason}" for at, reason in enumerate(reasons, start=1)), ""]
    return "\n".join(lines)


def read(page: str) -> dict[tuple[str, str], str]:
    """The cells of a page."""
    reasons = {f"[{m[1]}]": m[2] for m in re.finditer(r"^(\d+)\. (.*)$", page, re.MULTILINE)}
    rows = [[text.strip() for text in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    header, _, *body = rows
    return {
        (row[0], column): reasons.get(text, WORKS)
        for row in body
        for column, text in zip(header[1:], row[1:], strict=True)
    }


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/families.md")
    parser.add_argument("family", nargs="*", help="only these, and print what fails")
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    cells, wrong = {}, 0
    for family in given.family or families():
        tried = Tried(family)
        for column in COLUMNS:
            try:
                cells[family, column] = cell(tried, column)
            except Exception as error:  # the report goes on
                wrong += 1
                cells[family, column] = f"WRONG: {type(error).__name__}: {error}"
            if cells[family, column] != WORKS:
                sys.stderr.write(f"{family} / {column}: {cells[family, column]}\n")
    if not given.family and not wrong:
        page = table(cells)
        (PAGE.write_text if given.write else sys.stdout.write)(page)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    _main()
