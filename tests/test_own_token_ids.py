"""A user's own token ids need no n= and no length=: their shape says both."""

from __future__ import annotations

import pytest
import torch
from families import VOCABULARY, tiny
from test_features_judge import Stand

import interp
from interp.attention.sinks.dormant import head_costs
from interp.attention.sinks.massive import massive_activations
from interp.attention.sinks.survey import sink_heads, sink_positions, survey_sinks
from interp.efficiency import Text, deploy
from interp.efficiency.pruning import ActivationNormPruning, GradientScores, MultiPruner, SparsePruning
from interp.efficiency.quantization import GPTQ
from interp.errors import UsageError
from interp.features.judging.dark_matter import dark_matter
from interp.relevance import layer_redundancy, neuron_relevance
from interp.statistics import activation_statistics

ROWS, LENGTH = 5, 20
IDS = torch.randint(10, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(3))
FINDINGS = {
    "sink_heads": sink_heads,
    "sink_positions": sink_positions,
    "massive_activations": massive_activations,
    "heads": lambda model, ids, **options: interp.attention.heads(model, "first_token", ids, **options),
    "activation_statistics": activation_statistics,
    "layer_redundancy": layer_redundancy,
    "neuron_relevance": neuron_relevance,
    "head_importance": interp.attention.head_importance,
}
DICTIONARY = Stand("resid_post.1")
ARRAYS = {
    "judge": lambda *given, **options: interp.features.judge(given[0], DICTIONARY, given[1], **options).scores,
    "dark_matter": lambda *given, **options: dark_matter(given[0], DICTIONARY, given[1], **options),
    "head_costs": lambda *given, **options: head_costs(given[0], [(0, 1)], given[1], **options),
}
METHODS = (
    Text,
    ActivationNormPruning,
    GradientScores,
    MultiPruner,
    SparsePruning,
    GPTQ,
)


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_of_token_ids_is_of_all_of_them(model, name):
    found, said = FINDINGS[name](model, IDS), FINDINGS[name](model, IDS, n=ROWS, length=LENGTH)
    assert (found.settings["n"], found.settings["length"]) == (ROWS, LENGTH)
    for array, values in said.evidence.items():
        assert found.evidence[array].equals(values)
    fewer = FINDINGS[name](model, IDS, n=3)
    assert (fewer.settings["n"], fewer.settings["length"]) == (3, LENGTH)


@pytest.mark.parametrize("name", ARRAYS)
def test_what_is_measured_on_token_ids_is_measured_on_all_of_them(model, name):
    assert ARRAYS[name](model, IDS).equals(ARRAYS[name](model, IDS, n=ROWS, length=LENGTH))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_a_method_takes_its_size_from_token_ids(method):
    options = {"scored": 4} if method is Text else {}
    made = method(source=IDS, **options)
    assert (made.n, made.length) == (ROWS, LENGTH)
    assert method(source=IDS, length=9, **options).length == 9
    assert method(source="prose").length > LENGTH


def test_methods_read_all_token_ids():
    hf, text = deploy(tiny("llama")), Text(IDS, scored=4)
    text.prepare(hf)
    assert torch.equal(text.tokens, IDS)
    assert GradientScores(IDS)(hf).shape == (3, 4)


def test_several_kinds_of_text_share_a_length_and_may_differ_in_number(model):
    texts = {"a": IDS, "b": IDS[:2].flip(1)}
    found = survey_sinks(model, texts).heads
    assert found.settings["n"] == {"a": ROWS, "b": 2}
    for name, ids in texts.items():
        alone = survey_sinks(model, ids).heads
        assert torch.equal(
            *(
                torch.tensor(x)
                for x in (
                    found.evidence["domain_attention"].sel(domain=name).values,
                    alone.evidence["attention"].values,
                )
            )
        )
    with pytest.raises(UsageError, match=r"token ids of \[12, 20\] are given; say length="):
        survey_sinks(model, {"a": IDS, "b": IDS[:, :12]})
    assert survey_sinks(model, {"a": IDS, "b": IDS[:, :12]}, length=12).heads.settings["length"] == 12
    with pytest.raises(UsageError, match=r"token ids of \[2, 5\] are given; say n="):
        head_costs(model, [(0, 1)], texts)
