"""Attribution graphs against ground truth: hand-set weights, autograd through the frozen model, exact sums."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import boot, tiny

import interp
from interp.engine import Walk, verified
from interp.engine.forward import Visitor
from interp.engine.rules import Rules
from interp.features.architectures.cross_layer import cross_layer_transcoder
from interp.features.architectures.registry import ARCHITECTURES
from interp.features.architectures.transcoder import transcoder
from interp.features.place import Place
from interp.models._wiring import blank, mirrored, set_mlp
from interp.tracing import Residual, Transcoders, connections, edge_by_head, score_by_pairs, trace
from interp.tracing.frozen import FrozenRun
from interp.tracing.linear import order
from interp.tracing.trace import assembled

TOKENS = [5, 7, 9, 11, 5, 7]
SHAPES = ("llama", "gpt2", "neox", "neox-sequential", "gemma2", "gemma3", "qwen3", "olmo2", "granite", "cohere")


def missed(graph) -> float:
    """The largest relative difference between a node's value and the sum of its bias and its inputs."""
    nodes = graph.nodes[graph.nodes["expanded"]]
    sums = np.asarray(graph.matrix().sum(1)).ravel()[[graph.row(name) for name in nodes.index]] + nodes["bias"]
    return float(((sums - nodes["value"]).abs() / nodes["value"].abs().clip(lower=1e-2)).max())


def weight(graph, source: str, target: str) -> float:
    return float(graph.matrix()[graph.row(target), graph.row(source)])


def random_weights(dictionary, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in dictionary.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return dictionary


def transcoders(model, architecture: str = "topk", **options):
    options = {"k": 5, **options} if "topk" in architecture else options
    d = model.cfg.d_model
    made = {}
    for layer in range(model.cfg.n_layers):
        places = f"mlp_in.{layer}", f"mlp_out.{layer}"
        skip = layer % 2 == 0
        dictionary = transcoder(
            *places, d, 64, architecture=architecture, skip=skip, scale=1.7, scale_out=0.6, **options
        )
        made[layer] = random_weights(dictionary, layer)
    return made


# A model whose norms do nothing, whose heads write nothing, and whose neurons are set by hand


@pytest.fixture(scope="module")
def by_hand():
    """Neuron 0.0, relu(tok1 - 0.25), writes 2 n0; 1.0, relu(0.25 tok1 + 0.5 n0 + 0.1), writes n1; logit 2 is 10 n1."""
    model = blank(8, n_heads=2, n_inner=4, n_ctx=16, vocabulary=50)
    tok1, n0, n1 = torch.eye(8)[[0, 1, 2]]
    with torch.no_grad():
        model.transformer.wte.weight[1] = mirrored(tok1[None])[0]
        set_mlp(model.transformer.h[0].mlp, read=tok1[None], bias=torch.tensor([-0.25]), write=2 * n0[None])
        read = 0.25 * tok1 + 0.5 * n0
        set_mlp(model.transformer.h[1].mlp, read=read[None], bias=torch.tensor([0.1]), write=n1[None])
        model.lm_head.weight[2] = 5 * mirrored(n1[None])[0]
    return boot(model)


def test_edges_of_a_linear_model_are_products_of_weights(by_hand):
    graph = trace(by_hand, [3, 1], targets=[(2, 4)])
    nodes, close = graph.nodes, {"rel": 1e-4, "abs": 1e-6}
    assert nodes.loc["0.0@1", "activation"] == pytest.approx(0.75, **close)
    assert nodes.loc["1.0@1", "activation"] == pytest.approx(0.25 + 0.5 * 1.5 + 0.1, **close)
    assert weight(graph, "token@1", "0.0@1") == pytest.approx(1.0, **close)
    assert nodes.loc["0.0@1", "bias"] == pytest.approx(-0.25, **close)
    assert weight(graph, "token@1", "1.0@1") == pytest.approx(0.25, **close)
    assert weight(graph, "0.0@1", "1.0@1") == pytest.approx(0.75, **close)
    assert weight(graph, "1.0@1", "logit.2-4") == pytest.approx(11.0, **close)
    assert weight(graph, "0.0@1", "logit.2-4") == pytest.approx(0.0, **close)
    assert graph.scores()["replacement"] == pytest.approx(1.0)


@pytest.mark.parametrize("architecture", ["standard", "jumprelu"])
def test_a_transcoder_with_the_neurons_weights_gives_the_neurons_graph(by_hand, architecture):
    made = {}
    for layer, block in enumerate(by_hand.original_model.transformer.h):
        dictionary = transcoder(f"mlp_in.{layer}", f"mlp_out.{layer}", 16, 4, architecture=architecture)
        with torch.no_grad():
            dictionary.W_enc.copy_(block.mlp.c_fc.weight)
            dictionary.b_enc.copy_(block.mlp.c_fc.bias)
            dictionary.W_dec.copy_(block.mlp.c_proj.weight)
        made[layer] = dictionary
    ours, theirs = (trace(by_hand, [3, 1], basis, targets=[(2, 4)]) for basis in ("neurons", made))
    # The neuron of layer 1 is active at position 0, too, through its bias, and nothing hangs on it there.
    names = [name for name in ours.nodes.index if name in theirs.nodes.index]
    assert {"token@1", "0.0@1", "1.0@1", "logit.2-4"} <= set(names)
    rows = [[graph.row(name) for name in names] for graph in (ours, theirs)]
    a, b = (graph.matrix().toarray()[np.ix_(row, row)] for graph, row in zip((ours, theirs), rows, strict=True))
    assert np.allclose(a, b, atol=1e-5)
    errors = theirs.nodes.index[theirs.nodes["kind"] == "error"]
    assert np.abs(theirs.matrix()[:, [theirs.row(name) for name in errors]].toarray()).max() < 1e-5


def test_what_a_transcoder_misses_is_in_the_error_node(by_hand):
    made = {
        layer: transcoder(f"mlp_in.{layer}", f"mlp_out.{layer}", 16, 4, architecture="standard") for layer in (0, 1)
    }
    with torch.no_grad():
        for dictionary in made.values():
            dictionary.b_enc.fill_(-10.0)  # nothing is ever active
    graph = trace(by_hand, [3, 1], made, targets=[(2, 4)])
    assert weight(graph, "error.1@1", "logit.2-4") == pytest.approx(11.0, rel=1e-4)
    assert graph.scores()["replacement"] == pytest.approx(0.0, abs=1e-4)


# Random models of all shapes


@pytest.mark.parametrize("family", SHAPES)
def test_inputs_and_bias_sum_to_every_nodes_value(family):
    graph = trace(tiny(family), TOKENS, max_nodes=40)
    assert (graph.nodes["kind"] == "feature").sum() == 40
    assert missed(graph) < 1e-4


@pytest.mark.parametrize("family", ["llama", "neox", "gemma2"])
def test_inputs_and_bias_sum_to_the_value_in_every_basis(family):
    model = tiny(family)
    n, d = model.cfg.n_layers, model.cfg.d_model
    made = transcoders(model)
    saes = {
        layer: random_weights(ARCHITECTURES["topk"](d, 64, k=6, reads=Place("resid_post", layer), seed=layer))
        for layer in (0, n - 1)
    }
    clt = random_weights(cross_layer_transcoder(range(n), d, 64, kind="topk", k=5, scale=1.3, scale_out=0.7))
    some = {1: made[1]}
    bases = [made, saes, clt, *(Transcoders(some, others) for others in ("neurons", "errors", "linear"))]
    for basis in bases:
        assert missed(trace(model, TOKENS, basis, max_nodes=40)) < 1e-4


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "gated", "batch_topk"])
def test_inputs_and_bias_sum_to_the_value_for_every_architecture(architecture):
    model = tiny("gpt2")
    graph = trace(model, TOKENS, transcoders(model, architecture), max_nodes=40)
    assert (graph.nodes["kind"] == "feature").sum() == 40
    assert missed(graph) < 1e-4


@pytest.mark.parametrize("family", SHAPES)
def test_the_frozen_model_is_the_model_on_its_own_prompt(family):
    parts = verified(tiny(family))
    run = FrozenRun(parts, torch.tensor(TOKENS))
    for layer in range(parts.graph.n_layers):
        mid = run.kept["resid_post", layer] - run.kept["mlp_out", layer] - run.kept["resid_pre", layer]
        ours = run.attended(layer, run.kept["resid_pre", layer][None])[0] + run.attention_constant(layer)
        assert torch.allclose(ours, mid, atol=1e-4)


class _Cut(Visitor):
    """Cuts MLPs out of the tape, keeps their outputs as leaves, and keeps what one of them reads."""

    def __init__(self, layer: int) -> None:
        self.layer, self.leaves, self.read = layer, {}, None

    def visit(self, layer, site, first, x):
        if site == "mlp_port" and layer == self.layer:
            self.read = x
        if site == "mlp_out":
            x = x.detach().requires_grad_()
            self.leaves[layer] = x
        return x


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma2"])
def test_edges_are_what_autograd_finds_in_the_frozen_model(family):
    model = tiny(family)
    graph, parts = trace(model, TOKENS, max_nodes=60), verified(model)
    found = assembled(graph)
    target = graph.nodes[(graph.nodes["kind"] == "feature") & (graph.nodes["layer"] == 2)].index[0]
    position = int(graph.nodes["position"][target])
    row = found.names.index(target)
    cut = _Cut(2)
    with torch.enable_grad():
        walk = Walk(parts, len(TOKENS), Rules(norm="constant", attention="constant"))
        embedded = walk.embed(torch.tensor([TOKENS])).detach().requires_grad_()
        walk(embedded, cut)
        # The reading vector already has the norm in it, so that it meets the stream itself.
        value = cut.read[0, position] @ found.reads.vector[row]
        leaves = [embedded, cut.leaves[0], cut.leaves[1]]
        gradients = torch.autograd.grad(value, leaves)
    writes = found.writes
    for place, gradient in zip([("embed", 0), ("mlp_out", 0), ("mlp_out", 1)], gradients, strict=True):
        at = writes[place]
        effects = torch.einsum("sd,sd->s", gradient[0][at.position], at.vector)
        for column, effect in zip(at.column.tolist(), effects.tolist(), strict=True):
            assert weight(graph, found.names[column], target) == pytest.approx(effect, abs=1e-4)


@pytest.mark.parametrize("basis", ["neurons", "residual"])
def test_an_edge_is_the_finite_difference_of_the_frozen_model(basis):
    model = tiny("llama")
    saes = {
        layer: random_weights(ARCHITECTURES["topk"](32, 64, k=6, reads=Place("resid_post", layer))) for layer in (0, 2)
    }
    graph = trace(model, TOKENS, "neurons" if basis == "neurons" else Residual(saes), max_nodes=30)
    found = assembled(graph)
    local = found.local
    features = graph.nodes[graph.nodes["kind"] == "feature"]
    source = str(features[features["layer"] == 0].index[0])
    column, site = found.names.index(source), found.local.replaced[0].writes[0][0]
    at = found.writes[site, 0]
    here = at.column == column
    x = torch.zeros(1, len(TOKENS), 32)
    x[0].index_add_(0, at.position[here], at.vector[here])
    after = order("resid_post", 0) if basis == "neurons" else order("resid_pre", 1)
    streams = dict(local.push({after: x}))
    for number, target in enumerate(
        [*found.names[: found.n_units], *graph.nodes.index[graph.nodes["kind"] == "logit"]]
    ):
        stream = streams[int(found.reads.order[number])][0, int(found.reads.position[number])]
        assert weight(graph, source, target) == pytest.approx(float(stream @ found.reads.vector[number]), abs=1e-5)


# Heads and patterns


@pytest.mark.parametrize("family", ["llama", "neox", "gemma2"])
@pytest.mark.parametrize("by", ["last", "first", "only"])
def test_an_edge_splits_by_head_without_a_remainder(family, by):
    graph = trace(tiny(family), TOKENS, max_nodes=30)
    target = graph.nodes.index[-1]
    for source in ("token@2", "token@5", str(graph.nodes.index[graph.nodes["kind"] == "feature"][0])):
        split = edge_by_head(graph, source, target, by)
        assert split.weight == pytest.approx(weight(graph, source, target), abs=1e-5)
        assert split.direct + float(split.heads.sum()) + split.rest == pytest.approx(split.weight, abs=1e-6)
        if by != "only":
            assert abs(split.rest) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "gemma3", "qwen2"])
def test_a_score_is_the_sum_over_pairs(family):
    graph = trace(tiny(family), TOKENS, max_nodes=30)
    split = score_by_pairs(graph, "a1.h2", 5, 3)
    assert split.pairs.sum() == pytest.approx(split.score, rel=1e-4, abs=1e-5)
    assert split.pairs.shape == (len(split.names),) * 2


def test_the_path_through_the_known_heads_is_found():
    model = interp.load("toy-induction")
    words = ["A", "B", "C", "D", "A"] if model.tokenizer is None else None
    tokens = [10, 11, 12, 13, 10] if words is None else words
    graph = trace(model, tokens, targets=[(11, 12)])
    node = "logit.11-12"
    assert graph.inputs(node)["source"][0] == "token@1"
    split = edge_by_head(graph, "token@1", node)
    assert split.top(1)["head"][0] == "a1.h0"
    assert split.top(1)["share"][0] == pytest.approx(1.0, abs=1e-3)
    # The head looks at position 1 because its token came after the one that is now read again: K-composition.
    score = score_by_pairs(graph, "a1.h0", 4, 1)
    assert tuple(score.top(1)[["query", "key"]].iloc[0]) == ("token@4", "token@0")
    previous = score_by_pairs(graph, "a0.h0", 1, 0)
    assert tuple(previous.top(1)[["query", "key"]].iloc[0]) == ("token@1", "token@0")


# Connections that hold for every input


def test_connections_are_products_of_weights(by_hand):
    table = connections(by_hand, "neurons", (0, 0), 1, k=1)
    scale = 1e4**0.5  # the norm's weight; its scale, the inverse of it, is left out
    assert table["feature"][0] == 0
    assert table["weight"][0] == pytest.approx(0.5 * 2 * scale, rel=1e-4)
    logits = connections(by_hand, "neurons", (1, 0), "logits", k=1)
    assert logits["feature"][0] == 2


def test_connections_through_a_head_use_its_ov_circuit():
    model = tiny("llama")
    parts = verified(model)
    table = connections(model, "neurons", (0, 3), 2, head="a1.h1", k=500)
    block = parts.blocks[1]
    v, o = block.v.weight[:8] * block.ln1.weight, block.o.weight[:, 8:16]
    written = parts.blocks[0].down.weight[:, 3]
    read = parts.blocks[2].up.weight * parts.blocks[2].ln2.weight
    expected = (read @ (o @ (v @ written))).detach()
    ours = table[table["input"] == "in"].set_index("feature")["weight"].sort_index()
    assert np.allclose(ours, expected.numpy()[ours.index], rtol=1e-4, atol=1e-6)


@pytest.mark.real_model
def test_inputs_and_bias_sum_to_the_value_on_a_real_model(smollm2):
    graph = trace(smollm2, "When Mary and John went to the store, John gave a drink to", max_nodes=64)
    assert missed(graph) < 1e-4
    assert graph.nodes.loc[graph.nodes["kind"] == "logit", "label"].str.contains("Mary").any()
