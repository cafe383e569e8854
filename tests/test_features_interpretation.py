"""Explaining features: planted ones are explained exactly, their controls score chance, and nothing leaks."""

from __future__ import annotations

import html
import http.server
import itertools
import json
import re
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from command_line import command
from families import VOCABULARY, hugging_face_model, tiny, tokenizer
from hypothesis import given
from hypothesis import strategies as st

from interp.engine.parts import parts_of
from interp.errors import InterpError, UsageError
from interp.features.activations.base import Activations
from interp.features.activations.harvest import harvest
from interp.features.architectures.topk import TopK
from interp.features.interpretation.embedding import HiddenStates, TfIdf
from interp.features.interpretation.endpoint import EndpointExplainer
from interp.features.interpretation.examples import Example, Examples
from interp.features.interpretation.interpret import interpret
from interp.features.interpretation.interpretations import Interpretations
from interp.features.interpretation.intervention import Intervention
from interp.features.interpretation.local import LocalExplainer
from interp.features.interpretation.ngrams import NGramExplainer
from interp.features.interpretation.patterns import ANY, KINDS, Clause, Pattern
from interp.features.interpretation.predictors import Explainer, Judge, JudgePredictor, PatternPredictor
from interp.features.interpretation.scorers import Embedding, auroc, balanced_accuracy
from interp.features.place import Place
from interp.features.reading.read import read_features
from interp.plots.dashboard import feature_page

PLACE = Place("resid_pre", 0)
ROWS, LENGTH, FIRST, LAST = 400, 16, 4, 16
EXPECTED = {
    0: 'fires on "t5" (10)',
    1: 'fires on "t6" after "t7" (10)',
    2: "fires on any token at position 3 (10)",
    3: 'fires on the first "t9" (10)',
    4: 'fires on any token after "t8" (10)',
    5: 'fires on "t12" (10)',
    6: 'fires on "t13" (10)',
    7: 'fires on "t14" after "t5" (10)',
}


def fired(rows):
    """Which planted features are active on the tokens of rows: "row pos feature"."""
    before = torch.nn.functional.pad(rows[:, :-1], (1, 0), value=-1)
    position = torch.arange(rows.shape[1]).expand(rows.shape)
    seen = torch.stack([(rows[:, :i] == rows[:, i : i + 1]).any(1) for i in range(rows.shape[1])], 1)
    found = [
        rows == 5,
        (rows == 6) & (before == 7),
        position == 3,
        (rows == 9) & ~seen,
        before == 8,
        rows == 12,
        rows == 13,
        (rows == 14) & (before == 5),
        torch.zeros_like(rows, dtype=torch.bool),
    ]
    return torch.stack(found, -1).float()


class Planted(Activations):
    """A store whose first numbers are the planted features themselves; the others are noise."""

    def __init__(self, store, rows):
        super().__init__(store.manifest, store.sizes)
        noise = torch.randn(*rows.shape, 32, generator=torch.Generator().manual_seed(3))
        noise[..., :9] = fired(rows)
        self.store, self.x = store, noise.flatten(0, 1)

    def load(self, number, names):
        found = self.store.load(number, names)
        begin = sum(self.sizes[:number])
        return found | {name: self.x[begin : begin + self.sizes[number]] for name in names if name == str(PLACE)}

    def _sum_up(self, name):
        raise NotImplementedError


class Reader:
    """The first numbers of an activation are its features."""

    reads = writes = PLACE
    scale, d_in = 1.0, 32

    def __init__(self):
        self.W_dec = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))

    def encode(self, x):
        return x[..., :9]

    def decode(self, f):
        return f @ self.W_dec


@pytest.fixture(scope="module")
def model():
    return tiny("llama")


@pytest.fixture(scope="module")
def rows():
    return torch.randint(FIRST, LAST, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def store(model, rows):
    return Planted(harvest(model, PLACE, rows, length=LENGTH, shard_tokens=1000), rows)


SETTINGS = {"features": range(8), "length": 8, "contexts": 40, "seed": 0}
PLAIN = NGramExplainer(raises=0)


@pytest.fixture(scope="module")
def found(model, store):
    return interpret(model, Reader(), store, explainer=PLAIN, **SETTINGS)


def test_planted_features_are_explained_exactly(found):
    assert {row.feature: row.explanation for row in found.rows} == EXPECTED


def test_exact_explanations_score_one_and_those_of_other_features_chance(found):
    for row in found.rows:
        for name in ("detection", "detection_accuracy", "fuzzing", "fuzzing_accuracy", "simulation"):
            assert row.scores[name] == pytest.approx(1), (row.feature, name)
        if row.feature in (1, 3, 7):  # elsewhere there may be no hard context: the token alone makes the feature active
            assert row.scores["detection_hard"] == 1
        assert row.other not in (None, row.feature)
    means = found.means()
    for name, chance in found.about["chance"].items():
        assert abs(means.loc[name, "shuffled"] - chance) < 0.1, name
    assert means.loc["embedding", "score"] > 0.6
    assert means.loc["detection", "score"] > means.loc["detection", "random"] + 0.1


def test_what_the_explainer_says_at_random_scores_chance(model, store):
    class Guess:
        draw = np.random.default_rng(0)

        def explain(self, examples):
            return str(Pattern((Clause(f"t{self.draw.integers(FIRST, LAST)}"),)))

    means = interpret(model, Reader(), store, explainer=Guess(), **SETTINGS).means()
    for name, chance in {"detection": 0.5, "detection_hard": 0.5, "fuzzing": 0.5, "simulation": 0.0}.items():
        assert abs(means.loc[name, "score"] - chance) < 0.15, name
        assert abs(means.loc[name, "shuffled"] - chance) < 0.15, name


def test_contexts_are_shown_or_scored_but_never_both(model, store, rows):
    class Watch(NGramExplainer):
        def explain(self, examples):
            shown_to.append(examples)
            return super().explain(examples)

    class Recorder:
        def __init__(self):
            self.chance, self.materials = {}, []

        def score(self, explanation, predictor, material):
            self.materials.append(material)
            return {}

    shown_to, recorder = [], Recorder()

    interpret(model, Reader(), store, explainer=Watch(), scorers=[recorder], **SETTINGS)
    shown = {e.number * 8 // LENGTH for one in shown_to for e in (*one.active, *one.quiet)}
    scored = {e.number * 8 // LENGTH for m in recorder.materials for e in (*m.active, *m.random, *m.hard)}
    assert shown
    assert scored
    assert not shown & scored
    truth = fired(rows)
    mine = [m for m in recorder.materials[:16] if m.feature < 8]
    for one in mine:
        for e in (*one.active, *one.random, *one.hard):
            row, at = divmod(e.number * 8, LENGTH)
            assert e.position == at
            assert e.tokens == tuple(f"t{i}" for i in rows[row, at : at + 8].tolist())
            assert e.lead == tuple(f"t{i}" for i in rows[row, max(0, at - 3) : at].tolist())
            np.testing.assert_array_equal(e.activations, truth[row, at : at + 8, one.feature])
            assert (e.peak > 0) == (e.kind == "active")
        if one.feature in (1, 3, 7):  # of the others the token alone, or none of them, decides
            assert "similar" in {e.kind for e in one.hard}
        assert len({e.number for e in (*one.active, *one.random)}) == len(one.active) + len(one.random)
        assert {e.quantile for e in one.active} <= set(range(5))


def test_the_same_call_gives_the_same_and_a_feature_does_not_depend_on_the_others(model, store, found, tmp_path):
    again = interpret(model, Reader(), store, explainer=PLAIN, **SETTINGS)
    assert found.save(tmp_path / "a.json").read_bytes() == again.save(tmp_path / "b.json").read_bytes()
    two = interpret(model, Reader(), store, explainer=PLAIN, **SETTINGS | {"features": [7, 0]})
    for feature in (0, 7):
        assert two[feature].explanation == found[feature].explanation
        assert two[feature].scores == found[feature].scores
    other = interpret(model, Reader(), store, explainer=PLAIN, **SETTINGS | {"seed": 1})
    assert {row.feature: row.explanation for row in other.rows} == EXPECTED
    assert other.to_frame()["embedding"].tolist() != found.to_frame()["embedding"].tolist()


def test_values_come_back_from_files(found, tmp_path):
    again = Interpretations.load(found.save(tmp_path / "explanations.json"))
    assert again.save(tmp_path / "again.json").read_bytes() == (tmp_path / "explanations.json").read_bytes()
    assert again.about == json.loads(json.dumps(found.about))
    assert again.to_frame().equals(found.to_frame())
    assert "mean detection 1.000" in repr(again)
    assert "<table" in again._repr_html_()
    assert again[3].to_frame().loc["fuzzing", "score"] == 1
    with pytest.raises(UsageError, match="feature 99 was not explained"):
        again[99]
    with pytest.raises(InterpError, match="no explanations"):
        Interpretations.load(tmp_path / "none.json")
    for text in ("[", "{}", '{"format": "interp.explanations/9"}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InterpError, match=r"bad\.json"):
            Interpretations.load(tmp_path / "bad.json")


def test_features_without_contexts_say_so(model, store, tmp_path):
    found = interpret(model, Reader(), store, explainer=PLAIN, **SETTINGS | {"features": [0, 5, 8]})
    assert found[8].explanation == ""
    assert "active in 0 contexts" in found[8].note
    assert np.isnan(found.to_frame().loc[8, "detection"])
    assert found.means().loc["detection", "features"] == 2
    assert np.isnan(Interpretations.load(found.save(tmp_path / "x.json")).to_frame().loc[8, "detection"])
    drawn = interpret(model, Reader(), store, explainer=PLAIN, **SETTINGS | {"features": None, "n": 9})
    assert drawn.features == list(range(8))


def example(words, values, position=0, lead=(), kind="active"):
    new = np.array([word not in words[:i] for i, word in enumerate(words)])
    return Example(tuple(words), np.array(values, float), tuple(lead), position, new, kind, 0, 0)


TEXT = st.text(max_size=6)
CLAUSES = st.builds(
    lambda token, kind, before, position, first, strength: Clause(
        token if kind is None else kind, tuple(before), position, first and kind is None, kind is None, strength
    ),
    TEXT,
    st.sampled_from([None, ANY, *KINDS]),
    st.lists(TEXT, max_size=2),
    st.none() | st.integers(0, 300),
    st.booleans(),
    st.integers(1, 10),
)


@given(st.lists(CLAUSES, max_size=4), st.lists(TEXT, max_size=3))
def test_every_pattern_reads_back_from_its_sentence(clauses, raises):
    pattern = Pattern(tuple(clauses), tuple(raises))
    assert Pattern.parse(str(pattern)) == pattern


@pytest.mark.parametrize("text", ["", "It likes verbs.", 'fires on "the', 'fires on "a" (10) and more', "fires often"])
def test_other_texts_are_no_patterns(text):
    assert Pattern.parse(text) is None


def test_a_pattern_predicts_what_it_says():
    one = example([" of", " the", " the", "12", "."], [0, 1, 0, 0, np.nan], position=4, lead=(" king",))

    def on(clause):
        return (Pattern((clause,)).predict(one) > 0).nonzero()[0].tolist()

    assert on(Clause(" the")) == [1, 2]
    assert on(Clause(" the", (" of",))) == [1]
    assert on(Clause(" the", first=True)) == [1]
    assert on(Clause(ANY, position=6, literal=False)) == [2]
    assert on(Clause(ANY, (" king",), literal=False)) == [0]
    assert on(Clause("a number", (" the",), literal=False)) == [3]
    assert on(Clause("punctuation", literal=False)) == []  # nothing was harvested there
    both = Pattern((Clause(" the", strength=2), Clause(" the", (" of",), strength=7)))
    assert both.predict(one).tolist() == [0, 0.7, 0.2, 0, 0]


def test_sinks_are_explained_as_first_tokens_and_positions():
    """The strongest features of SmolLM2 are active on the first " the" of a text and on its first tokens."""
    texts = [[" a", " the", f" w{i}", " the", f" v{i}"] for i in range(20)]
    on_first = [example(words, [0, 9, 0, 0, 0], position=1) for words in texts]
    assert PLAIN.explain(Examples(tuple(on_first), ())) == 'fires on the first " the" (10)'
    at_start = [example([f" u{i}", *words], [9, 0, 0, 0, 0, 0], position=1) for i, words in enumerate(texts)]
    assert PLAIN.explain(Examples(tuple(at_start), ())) == "fires on any token at position 1 (10)"
    assert PLAIN.explain(Examples((), ())) == "fires on nothing that the tokens show"


def test_kinds_of_tokens_are_named():
    texts = [[f"{i}7", " and", f" {i}9", f" w{i}", "."] for i in range(20)]
    numbers = [example(words, [1, 0, 1, 0, 0]) for words in texts]
    assert PLAIN.explain(Examples(tuple(numbers), ())) == "fires on a number (10)"


def test_areas_and_accuracies_are_what_counting_gives():
    draw = np.random.default_rng(0)
    yes, no = draw.integers(0, 5, 30).astype(float), draw.integers(0, 4, 20).astype(float)
    pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(yes, no)]
    assert auroc(yes, no) == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc(yes, no[:0]))
    assert balanced_accuracy(yes, no, 3) == pytest.approx(((yes >= 3).mean() + (no < 3).mean()) / 2)
    assert balanced_accuracy(np.array([1.0, 0.5]), np.array([0.5, 0.0]), 0.5) == 0.75


def test_tf_idf_cosines_are_those_of_the_whole_vectors():
    texts = ["the king", "the king of the world", "a queen", "The KING", "zzz"]
    counts = [TfIdf()._grams(text) for text in texts]
    grams = sorted({gram for one in counts[1:] for gram in one})
    idf = [np.log(6 / (1 + sum(gram in one for one in counts[1:]))) for gram in grams]
    whole = np.array(
        [[(1 + np.log(one[g])) * w if g in one else 0 for g, w in zip(grams, idf, strict=True)] for one in counts]
    )
    found = TfIdf().embed(texts)

    def cosines(x):
        return x[1:] @ x[0] / (np.linalg.norm(x[1:], axis=1) * np.linalg.norm(x[0]) + 1e-12)

    np.testing.assert_allclose(cosines(found), cosines(whole), atol=1e-9)
    assert cosines(found)[2] == pytest.approx(1)
    assert cosines(found)[3] == 0


def test_hidden_states_are_the_models_means(model):
    found = HiddenStates(model).embed(["t4 t5", "t6"])
    assert found.shape == (2, 32)
    np.testing.assert_allclose(found.sum(0), 0, atol=1e-5)
    assert np.abs(found).max() > 0.01


class Oracle:
    """Explains by a token's name, and judges by looking for it."""

    contexts = 5

    def __init__(self, answer=None):
        self.answer, self.prompts = answer, []

    def explain(self, examples):
        marked = [m for e in examples.active for m in re.findall(r"<<(t\d+?)>>", e.marked(e.strong(), "<<{}>>".format))]
        return f"the word {max(set(marked), key=marked.count)}" if marked else "nothing"

    def complete(self, prompt):
        self.prompts.append(prompt)
        if self.answer is not None:
            return self.answer(prompt)
        word = re.search(r"the word (t\d+)", prompt)[1]
        if "Write one line" in prompt:
            lines = re.findall(r"^(\d+): '(t\d+)'$", prompt, re.MULTILINE)
            return "\n".join(f"{i}: {10 if token == word else 0}" for i, token in lines)
        texts = re.findall(r"^Text \d+: '(.*)'$", prompt, re.MULTILINE)
        if "<<" in prompt.split("\nText")[0]:
            hits = [f"<<{word}>>" in text for text in texts]
        else:
            hits = [re.search(rf"{word}(?!\d)", text) is not None for text in texts]
        return f"My answer: {[int(hit) for hit in hits]}"


def test_explanations_in_words_are_read_by_a_judge(model, store):
    oracle = Oracle()
    assert isinstance(oracle, Explainer)
    assert isinstance(oracle, Judge)
    found = interpret(model, Reader(), store, explainer=oracle, **SETTINGS | {"features": [0, 5, 6], "contexts": 10})
    assert found.about["judge"] == "Oracle"
    assert [row.explanation for row in found.rows] == ["the word t5", "the word t12", "the word t13"]
    for row in found.rows:
        assert row.scores["detection"] == row.scores["detection_accuracy"] == 1
        assert row.scores["simulation"] == pytest.approx(1)
        assert row.scores["fuzzing"] >= 0.9  # where two run together the marks are one
    assert found.means().loc["detection", "shuffled"] < 0.7


def test_a_judge_that_does_not_answer_is_undecided():
    one = [example(["a", "b"], [1, 0])] * 7
    silent = JudgePredictor("x", Oracle(lambda prompt: "I can't say [1]."))
    assert silent.contexts(one).tolist() == [0.5] * 7
    lines = JudgePredictor("x", Oracle(lambda prompt: "0: 99\n7: 3\nwhat: 2\n1: 4"))
    assert lines.tokens(one[:1])[0].tolist() == [1.0, 0.4]
    assert PatternPredictor(Pattern(())).contexts(one).tolist() == [0.0] * 7


def test_a_judge_that_gives_probabilities_is_asked_for_that_of_yes():
    class Sure:
        def complete(self, prompt):
            raise AssertionError("not asked")

        def surprisal(self, prompt, text):
            p = 0.8 if "'b'" in prompt else 0.1
            return -float(np.log({"Yes": p, "No": 1 - p}[text] / 2))

    some = [example(["b"], [1]), example(["a"], [0])]
    assert JudgePredictor("x", Sure()).contexts(some).tolist() == pytest.approx([0.8, 0.1])


def test_words_without_a_judge_and_bad_requests_are_refused(model, store):
    class Words:
        def explain(self, examples):
            return "verbs"

    class Silent:
        def explain(self, examples):
            return None

    for wrong, message in [
        ({"explainer": Words()}, "give a judge"),
        ({"explainer": Silent()}, "gave a NoneType"),
        ({"scorers": ["detect"]}, "unknown scorer 'detect'"),
        ({"scorers": []}, "name a scorer"),
        ({"features": [1]}, "two different features"),
        ({"features": [1, 1]}, "two different features"),
        ({"features": [0, 9]}, "numbered 0 to 8"),
        ({"length": 0}, "at least"),
        ({"max_memory": 100}, "max_memory"),
        ({"features": None, "least": 5000}, "more tokens"),
    ]:
        with pytest.raises(UsageError, match=message):
            interpret(model, Reader(), store, **SETTINGS | wrong)
    with pytest.raises(UsageError, match="another model"):
        interpret(tiny("llama", rms_norm_eps=1e-3), Reader(), store, **SETTINGS)


def test_a_feature_that_writes_a_tokens_unembedding_raises_it(model, rows):
    """Ground truth: at the last layer the decoder row of one token's unembedding makes that token likelier."""
    parts = parts_of(model)
    unembed = parts.unembed.weight.detach() / parts.ln_final.weight
    scorer = Intervention(model, Place("resid_post", 2), unembed.__getitem__, rows[:4, :8], kl=0.5)

    class One:
        feature = 7

    changed = scorer.changed(7)
    moved = float((scorer.clean.exp() * (scorer.clean - changed)).sum(-1).mean())
    assert moved == pytest.approx(0.5, rel=0.05)
    scores = [scorer.score(f'fires on "t4" (10); raises "t{i}"', None, One)["intervention"] for i in range(VOCABULARY)]
    assert scores[7] > 0.3
    assert int(np.argmax(scores)) == 7
    assert np.isnan(scorer.score('fires on "t4" (10)', None, One)["intervention"])
    assert np.isnan(scorer.score("in words", None, One)["intervention"])

    class Places:
        def surprisal(self, prompt, text):
            """How far down in the list the word stands."""
            listed = re.findall(r"t\d+", prompt)
            return float(listed.index(text)) if text in listed else 20.0

    scorer.judge = Places()
    words = [scorer.score(f"t{i}", None, One)["intervention"] for i in range(VOCABULARY)]
    likeliest = scorer.clean.exp().mean((0, 1)).argsort(descending=True).tolist()
    assert words[7] == min(likeliest.index(7), 20)
    assert words[likeliest[0]] <= 0
    with pytest.raises(UsageError, match="positive"):
        Intervention(model, Place("resid_post", 2), unembed.__getitem__, rows[:4, :8], kl=0)
    with pytest.raises(UsageError, match="2 tokens"):
        Intervention(model, Place("resid_post", 2), unembed.__getitem__, rows[:0, :8])


def test_interventions_are_scored_beside_both_controls(model, store):
    found = interpret(
        model, Reader(), store, **SETTINGS | {"features": [0, 1, 2]}, scorers=["detection", "intervention"]
    )
    assert np.isfinite(found.means().loc["intervention", ["score", "shuffled", "random"]].astype(float)).all()
    assert '; raises "t' in found[0].explanation


def test_a_local_model_answers_with_its_likeliest_tokens():
    model = hugging_face_model("llama")
    local = LocalExplainer(model, tokenizer(), max_new_tokens=4)
    ids = tokenizer()("t4 t5 t6", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        whole = ids
        for _ in range(4):
            whole = torch.cat([whole, model(whole).logits[:, -1:].argmax(-1)], 1)
            if whole[0, -1] == 2:
                break
        expected = tokenizer().decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
        assert local.complete("t4 t5 t6") == expected
        logits = model(torch.cat([ids, torch.tensor([[7, 8]])], 1)).logits[0].log_softmax(-1)
    n = ids.shape[1]
    assert local.surprisal("t4 t5 t6", "t7 t8") == pytest.approx(-float(logits[n - 1, 7] + logits[n, 8]), rel=1e-4)
    with pytest.raises(UsageError, match="beyond this model's 64"):
        local.complete("t4 " * 70)
    with pytest.raises(UsageError, match="tokenizer"):
        LocalExplainer(model)
    assert isinstance(local, Explainer)


def test_a_bridge_explains_too(model):
    assert isinstance(LocalExplainer(model, max_new_tokens=3).complete("t4 t5"), str)


@contextmanager
def endpoint(answer):
    """A server that answers `(status, headers, body)`; yields its address and what it was asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked.append((self.path, dict(self.headers), json.loads(body)))
            status, headers, said = answer()
            try:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(said.encode())
            except BrokenPipeError:
                pass

        do_GET = do_POST

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def said(text):
    return json.dumps({"choices": [{"message": {"content": text}}]})


KEY = "sk-very-secret"


def test_an_endpoint_is_asked_as_the_protocol_says(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with endpoint(lambda: (200, {}, said("It likes t5.\nReally."))) as (url, asked):
        one = EndpointExplainer(url, "big", "MY_KEY", seed=3)
        assert one.explain(Examples((example(["a", "t5"], [0, 1]),), ())) == "It likes t5."
        EndpointExplainer(url, "big").complete("hello")
    path, headers, body = asked[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert "a<<t5>>" in body["messages"][0]["content"]
    assert (body["model"], body["temperature"], body["seed"]) == ("big", 0, 3)
    assert "Authorization" not in asked[1][1]
    assert KEY not in repr(one) + repr(vars(one))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, {}, json.dumps({"error": {"message": f"bad key {KEY}"}})), r"HTTP 401 Unauthorized: bad key \*\*\*$"),
        ((500, {}, "<html>\noops"), "HTTP 500 .*oops"),
        ((302, {"Location": "http://127.0.0.1:1/steal"}, ""), "HTTP 302"),
        ((200, {}, "not json"), "no chat completion: 'not json'"),
        ((200, {}, '{"choices": []}'), "no chat completion"),
    ],
)
def test_an_endpoints_errors_are_one_message_without_the_key(answer, message, monkeypatch, caplog, capfd):
    monkeypatch.setenv("MY_KEY", KEY)
    with (
        endpoint(lambda: answer) as (url, _),
        pytest.raises(InterpError, match=message) as caught,
    ):
        EndpointExplainer(url, "big", "MY_KEY").complete("hello")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert KEY not in str(caught.value) + caplog.text + "".join(capfd.readouterr())


def test_a_late_or_absent_endpoint_and_a_missing_key_are_said(monkeypatch):
    def late():
        time.sleep(0.6)
        return 200, {}, said("late")

    with endpoint(late) as (url, _), pytest.raises(InterpError, match=r"no answer within 0\.1 seconds"):
        EndpointExplainer(url, "big", timeout=0.1).complete("hello")
    with pytest.raises(InterpError, match="refused"):
        EndpointExplainer("http://127.0.0.1:9/v1", "big").complete("hello")
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(UsageError, match="NO_KEY is not set"):
        EndpointExplainer("http://127.0.0.1:9/v1", "big", "NO_KEY").complete("hello")
    for url, message in [("file:///etc/passwd", "begins with http"), ("http://u:p@host/v1", "no password")]:
        with pytest.raises(UsageError, match=message):
            EndpointExplainer(url, "big")
    with pytest.raises(UsageError, match="timeout"):
        EndpointExplainer("http://host", "big", timeout=0)


def test_embeddings_of_words_retrieve_contexts_that_have_them(found):
    class Material:
        active = tuple(example([" the", " king"], [0, 1]) for _ in range(5))
        random = tuple(example([" a", " stone"], [0, 0], kind="random") for _ in range(5))

    assert Embedding().score('fires on " king" (10)', None, Material)["embedding"] == 1
    assert Embedding().score("stones", None, Material)["embedding"] == 0


def test_pages_show_the_explanation_with_its_controls(model, store, found):
    readings = read_features(model, Reader(), store, k=2, partners=0)
    page = feature_page(readings, 1, found[1])
    assert html.escape('fires on "t6" after "t7" (10)') in page
    assert f"that of feature {found[1].other}" in page
    assert "detection_hard" in page
    assert "Explanation" not in feature_page(readings, 1)
    none = interpret(model, Reader(), store, explainer=PLAIN, **SETTINGS | {"features": [0, 5, 8]})
    assert "active in 0 contexts" in feature_page(readings, 8, none[8])


@pytest.mark.real_model
def test_the_command_explains_and_adds_to_the_pages(tmp_path):
    TopK(576, 64, k=4, reads=Place("resid_post", 0)).save(tmp_path, model_name="smollm2")
    arguments = ["--tokens", 3000, "-n", 2, "--text", "prose", "--scorers", "detection, fuzzing"]
    done = command("sae", "explain", tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    assert "detection_hard" in done.stdout
    said = Interpretations.load(tmp_path / "explanations.json")
    page = tmp_path / "dashboard" / "features" / f"{said.features[0]}.html"
    assert html.escape(said.rows[0].explanation) in page.read_text(encoding="utf-8")
