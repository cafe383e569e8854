"""Made-up facts about people and places that don't exist, with a question and an answer each."""

from __future__ import annotations

import re
from dataclasses import dataclass

from interp.errors import UsageError

__all__ = ["NEEDLES", "OTHER_NEEDLES", "WORD", "Needle"]

WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Needle:
    """A fact that nobody knows, a question about it, and the answer.

    Args:
        fact: one sentence; it is put into the haystack.
        question: what is asked at the end.
        answer: the words of the fact that answer it, as they stand there.
    """

    fact: str
    question: str
    answer: str

    def __post_init__(self) -> None:
        if not WORD.search(self.answer) or self.answer not in self.fact:
            raise UsageError(f"the answer must be words of the fact: {self.answer!r} does not stand in {self.fact!r}")


NEEDLES = (
    Needle(
        "The secret code of the lighthouse at Orvane is 74926.",
        "What is the secret code of the lighthouse at Orvane?",
        "74926",
    ),
    Needle(
        "The password of the Gannet Society is marmalade thunder.",
        "What is the password of the Gannet Society?",
        "marmalade thunder",
    ),
    Needle(
        "The name of the clockmaker's blue heron in Teldren is Basilio.",
        "What is the name of the clockmaker's blue heron in Teldren?",
        "Basilio",
    ),
    Needle(
        "The favourite dish of Captain Ilse Marrow is smoked eel with pickled walnuts.",
        "What is the favourite dish of Captain Ilse Marrow?",
        "smoked eel with pickled walnuts",
    ),
    Needle(
        "The violin of Pontus Reed was made of copper wire and walrus bone.",
        "What was the violin of Pontus Reed made of?",
        "copper wire and walrus bone",
    ),
    Needle(
        "The treasure of Queen Adelmar is buried under the third apple tree behind the chapel.",
        "Where is the treasure of Queen Adelmar buried?",
        "under the third apple tree behind the chapel",
    ),
    Needle(
        "The villagers of Harnholt paint their doors green because a green door once saved the miller's daughter "
        "from the flood.",
        "Why do the villagers of Harnholt paint their doors green?",
        "a green door once saved the miller's daughter from the flood",
    ),
    Needle(
        "The best thing to do in Quellport is to row a yellow boat around the old mill and listen to the bell ringers "
        "at dusk.",
        "What is the best thing to do in Quellport?",
        "row a yellow boat around the old mill and listen to the bell ringers at dusk",
    ),
)
"""Short and long answers about people and places that don't exist."""

OTHER_NEEDLES = (
    Needle(
        "The number on the iron gate of Castle Brumme is 58314.",
        "What is the number on the iron gate of Castle Brumme?",
        "58314",
    ),
    Needle(
        "The motto of the Wexmoor Rowing Club is velvet lightning.",
        "What is the motto of the Wexmoor Rowing Club?",
        "velvet lightning",
    ),
    Needle(
        "The old parrot of the baker in Sundrey answers to Leopold.",
        "Which name does the old parrot of the baker in Sundrey answer to?",
        "Leopold",
    ),
    Needle(
        "Every morning Doctor Halvard Pym has roasted chestnuts with plum jam.",
        "What does Doctor Halvard Pym have every morning?",
        "roasted chestnuts with plum jam",
    ),
    Needle(
        "Agnes Tolliver built her telescope from silver spoons and window glass.",
        "What did Agnes Tolliver build her telescope from?",
        "silver spoons and window glass",
    ),
    Needle(
        "The letters of Count Ferrand are hidden inside the hollow clock above the kitchen stairs.",
        "Where are the letters of Count Ferrand hidden?",
        "inside the hollow clock above the kitchen stairs",
    ),
    Needle(
        "Children in Mirebank carry a lantern to school because their first teacher got lost on a foggy winter "
        "evening.",
        "Why do children in Mirebank carry a lantern to school?",
        "their first teacher got lost on a foggy winter evening",
    ),
    Needle(
        "Visitors to Ostrava Hill should climb the wooden tower before breakfast and count the sailing ships in the "
        "bay.",
        "What should visitors to Ostrava Hill do?",
        "climb the wooden tower before breakfast and count the sailing ships in the bay",
    ),
)
"""As many more, for what findings are tried on."""
