from __future__ import annotations

import pytest
import torch
from families import FAMILIES, MORE, UNSUPPORTED, hugging_face_model, tiny

from interp.engine import run, verified
from interp.errors import InterpError, UsageError
from interp.graph import SITES, Graph, Node, site_of


def node_outputs(model, tokens):
    """Every node's write to the residual stream, by linear algebra on recorded activations."""
    parts = verified(model)
    kept, final = run(parts, tokens, {"z", "mlp_out", "resid_pre", "attn_out"})
    writes = {"input": kept["resid_pre", 0]}
    for layer, block in enumerate(parts.blocks):
        z, total = kept["z", layer], 0
        for head in range(parts.graph.n_heads):
            only = torch.zeros_like(z)
            only[:, :, head] = z[:, :, head]
            bias = block.o(torch.zeros_like(z).flatten(-2))
            total = total + (block.o(only.flatten(-2)) - bias)
            writes[f"a{layer}.h{head}"] = block.o(only.flatten(-2)) - bias
        if block.ln1_post is not None:
            whole = block.o(z.flatten(-2))
            for head in range(parts.graph.n_heads):
                share = writes[f"a{layer}.h{head}"] * block.ln1_post.inverse_scale(whole) * block.ln1_post.weight
                writes[f"a{layer}.h{head}"] = share
        else:
            writes[f"a{layer}.bias"] = bias
        writes[f"m{layer}"] = kept["mlp_out", layer]
    return writes, final


@pytest.mark.parametrize("family", [*FAMILIES, *MORE])
@torch.no_grad()
def test_the_nodes_add_up_to_the_final_residual(family):
    model = tiny(family)
    tokens = torch.randint(5, 50, (2, 11), generator=torch.Generator().manual_seed(1))
    writes, final = node_outputs(model, tokens)
    named = [name for name in writes if not name.endswith(".bias")]
    assert tuple(named) == Graph.of(model).nodes()[:-1]
    torch.testing.assert_close(sum(writes.values()), final, atol=1e-4, rtol=1e-4)
    _, cache = model.run_with_cache(tokens)
    theirs = cache[f"blocks.{len(model.blocks) - 1}.hook_resid_post"]
    torch.testing.assert_close(sum(writes.values()), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", [*FAMILIES, *(family for family in MORE if family != "cohere-qk-norm")])
@torch.no_grad()
def test_every_hook_name_exists_and_holds_what_the_site_says(family):
    """But of Cohere with norms on queries and keys, where the bridge itself is 2.5e-5 off transformers, the walk 0."""
    model = tiny(family)
    graph = Graph.of(model)
    tokens = torch.randint(5, 50, (2, 13), generator=torch.Generator().manual_seed(2))
    kept, _ = run(verified(model), tokens, set(SITES))
    _, cache = model.run_with_cache(tokens)
    for layer in range(graph.n_layers):
        for site in SITES:
            if (site == "resid_mid" and graph.parallel) or (site == "post" and graph.n_experts):
                continue
            theirs = cache[graph.hook(site, layer)]
            torch.testing.assert_close(kept[site, layer].reshape(theirs.shape), theirs, atol=1e-5, rtol=1e-4)


def test_shapes_follow_the_architecture():
    gemma, neox, gpt2 = Graph.of(tiny("gemma3")), Graph.of(tiny("neox")), Graph.of(tiny("gpt2"))
    assert (gemma.n_heads, gemma.n_kv_heads, gemma.windows) == (4, 1, (4, None, 4, None))
    assert gemma.qk_norm
    assert gemma.attn_post_norm
    assert gemma.norm == "rmsnorm"
    assert neox.parallel
    assert not Graph.of(tiny("neox-sequential")).parallel
    assert (gpt2.norm, gpt2.positional, gpt2.gated_mlp) == ("layernorm", "learned", False)
    assert Graph.of(tiny("mistral")).windows == (4, 4, 4)


def test_edges_are_counted_as_by_enumeration():
    graph = Graph.of(tiny("llama"))  # 3 layers, 4 heads, 2 key-value heads
    readers = [(layer, port) for layer in range(3) for port in ("attn", "mlp")]
    grouped = sum((1 + 5 * layer) * 8 if port == "attn" else 1 + 5 * layer + 4 for layer, port in readers) + 16
    assert graph.n_edges() == grouped == len(set(graph.edges()))
    assert graph.n_edges(ungrouped=True) == sum((1 + 5 * layer) * 12 + 5 + 5 * layer for layer in range(3)) + 16
    assert graph.upstream("a1.h0<k>") == graph.nodes()[:6]
    assert graph.upstream("m1") == graph.nodes()[:10]
    assert Graph.of(tiny("neox")).upstream("m1") == graph.nodes()[:6]  # parallel: the MLP sees no head of its block


@pytest.mark.real_model
def test_the_default_model_has_the_published_number_of_edges(smollm2):
    graph = Graph.of(smollm2)
    assert len(graph.nodes()) == 302
    assert graph.n_edges(ungrouped=True) == 123_211
    assert (graph.n_layers, graph.n_heads, graph.n_kv_heads) == (30, 9, 3)


@pytest.mark.parametrize(
    ("family", "part"),
    [
        ("bloom", "embed_ln"),
        ("mpt", "MPTALiBiAttentionBridge"),
        ("mamba", "SSMBlockBridge"),
        ("opt-350m", "project_in"),
        ("falcon-rw", "ALiBiJointQKVAttentionBridge"),
    ],
)
def test_an_unknown_architecture_is_refused_by_the_name_of_its_part(family, part):
    assert family in UNSUPPORTED
    with pytest.raises(UsageError, match=part):
        Graph.of(tiny(family))


def test_a_model_that_computes_something_else_is_refused_by_the_name_of_the_site():
    model = tiny("llama")
    original = model.blocks[1].attn.original_component
    original.scaling = original.scaling * 2
    verified(model)  # the setting is read off the module, so both agree

    class Doubled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.weight = inner, inner.weight
            self.variance_epsilon = inner.variance_epsilon

        def forward(self, x):
            return 2 * self.inner(x)

    other = tiny("llama")
    other.blocks[1].ln2.set_original_component(Doubled(other.blocks[1].ln2.original_component))
    with pytest.raises(InterpError, match=r"blocks\.1\.mlp\.hook_post"):
        verified(other)


def test_hooks_of_the_users_own_are_not_silently_ignored():
    model = tiny("gpt2")
    model.add_hook("blocks.1.hook_attn_out", lambda x, hook: 0 * x)
    with pytest.raises(UsageError, match=r"blocks\.1"):
        verified(model)
    model.reset_hooks(including_permanent=True)
    verified(model)


@pytest.mark.parametrize(
    "text",
    [
        *("a3.h5", "a3.h5.q", "a0.h1.k", "a0.h1.v", "a2.h0.pattern", "m3", "m3.n17", "resid_pre.3", "attn_out.0"),
        *("m3.e5", "m3.router", "m3.e5.router"),
    ],
)
def test_node_names_round_trip(text):
    assert str(Node.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "h3", "a3", "a3.h5.w", "m", "resid.3", "a-1.h0", "m3.n", "m3.e", "m3.e5router", "m3..router", "m3."]
)
def test_names_of_no_node_are_refused(text):
    with pytest.raises(UsageError, match="names no node"):
        Node.parse(text)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (Node("z", 3), "layers 0 to 2"),
        (Node("z", -1), "layer -1"),
        (Node("z", 0, 4), "heads 0 to 3"),
        (Node("k", 0, 2), "key-value heads 0 to 1"),
        (Node("post", 0, 48), "neurons 0 to 47"),
        (Node("mlp_out", 0, 1), "no heads or neurons"),
    ],
)
def test_nodes_out_of_range_are_refused(node, message):
    with pytest.raises(UsageError, match=message):
        Graph.of(tiny("llama")).check(node)


def test_unknown_names_come_with_the_nearest():
    with pytest.raises(UsageError, match="resid_pre"):
        site_of("resid-pre")
    with pytest.raises(UsageError, match=r"a0\.h0<q>"):
        Graph.of(tiny("llama")).upstream("a9.h0<q>")
    with pytest.raises(UsageError, match="parallel"):
        Graph.of(tiny("neox")).hook("resid_mid", 0)
    with pytest.raises(UsageError, match="TransformerBridge"):
        Graph.of(hugging_face_model("llama"))
