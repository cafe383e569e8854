"""Subject-verb agreement: the verb takes the number of its subject, not of the nearer noun."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from interp.errors import unknown_name
from interp.tasks.behaviour import Behaviour
from interp.tasks.pairs import Pair, template_pair
from interp.tasks.splits import Half
from interp.tasks.tokens import Encoder
from interp.tasks.words import single_words

__all__ = ["SUBJECT_VERB_AGREEMENT"]

SUBJECTS = (
    "key", "book", "picture", "letter", "friend", "teacher", "student", "doctor", "player", "author", "problem",
    "report", "house", "window", "story", "horse", "farmer", "soldier", "song", "car", "dog",
)  # fmt: skip
PREPOSITIONS = ("near", "behind", "beside", "with", "from")
NOUNS = ("table", "door", "garden", "river", "school", "tree", "wall", "car", "road", "building")
SINGULAR = (" is", " was", " has")
PLURAL = (" are", " were", " have")


def pairs(rng: Random, encoder: Encoder, half: Half, *, attractor: str | None = None) -> Iterator[Pair]:
    """Endless pairs such as "The keys near the table" -> " are"; corrupted: the subject in the other number.

    Args:
        attractor: `"singular"` or `"plural"` for the noun between subject and verb; None draws its number, which
            is the same in both prompts.
    """
    if attractor not in (None, "singular", "plural"):
        raise unknown_name("attractor", str(attractor), ("singular", "plural"))
    subjects = [s for s in half(SUBJECTS) if len(single_words((s, plural(s)), encoder)) == 2]
    nouns = half(NOUNS)
    while subjects:
        subject, noun, preposition = rng.choice(subjects), rng.choice(nouns), rng.choice(PREPOSITIONS)
        if subject == noun:
            continue
        many_between = rng.random() < 0.5 if attractor is None else attractor == "plural"
        forms = [(subject, SINGULAR), (plural(subject), PLURAL)]
        rng.shuffle(forms)
        (word, right), (other, wrong) = forms
        yield template_pair(
            f"The {{subject}} {preposition} the {{attractor}}",
            {"subject": word, "attractor": plural(noun) if many_between else noun},
            {"subject": other},
            right,
            wrong,
            ("subject", "attractor"),
        )


def plural(noun: str) -> str:
    return noun[:-1] + "ies" if noun.endswith("ry") else noun + "s"


SUBJECT_VERB_AGREEMENT = Behaviour(
    name="subject_verb_agreement",
    pairs=pairs,
    description="Subject-verb agreement: the verb has the number of the subject, across a noun in between.",
    source="Linzen et al. 2016, Assessing the Ability of LSTMs to Learn Syntax-Sensitive Dependencies, "
    "arXiv:1611.01368",
    content="nouns",
)
