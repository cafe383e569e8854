"""What a model can still do: text, keys in noise, tasks. Each is measured on whatever plans are in force.

A cache is measured as it is used: what stands before is prefilled and compressed before it is known what comes next.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from interp.efficiency.decoding import Decoder
from interp.errors import UsageError
from interp.tasks import Task, corpus, key_samples, sized, task
from interp.tasks.splits import half_of_corpus

__all__ = ["Keys", "Quality", "Tasks", "Text"]


class Quality(ABC):
    """Something that is measured on a model; a new one has a `name`, and says what is `better`."""

    name: str
    better: ClassVar[dict[str, str]]
    """Of each number: ``higher`` or ``lower``."""

    def prepare(self, model: PreTrainedModel) -> None:  # noqa: B027
        """Sees the dense model first, to compare with."""

    @abstractmethod
    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        """The numbers, by name."""

    def about(self) -> dict[str, Any]:
        """What it is measured on, in JSON's types: a trade-off records it."""
        return {}


class Text(Quality):
    """Plain text: loss, and how far the predictions are from the dense model's.

    The first tokens of each text are prefilled, the last `scored` ones fed `piece` at a time through the cache.

    Args:
        source: Text, see `interp.tasks.corpus`.
        n: Stretches of it; 4, or all rows of token ids.
        length: Tokens of each; 1024, or all of the token ids.
        scored: How many of them, the last ones, are predicted and count.
        piece: Tokens fed at a time.
        seed: Of the choice of stretches.
        split: Of a shipped corpus; by default what no finding is made on. Text that is given is all taken.

    Numbers: ``loss``, next-token cross-entropy in nats; ``kl``, KL divergence from the dense model's predictions, in
    nats a token; ``agreement``, the share of tokens whose likeliest prediction is the dense model's.
    """

    better: ClassVar = {"loss": "lower", "kl": "lower", "agreement": "higher"}

    def __init__(
        self,
        source: str | Path | Sequence[str] | Int[Tensor, "text pos"] = "prose",
        n: int | None = None,
        length: int | None = None,
        scored: int = 256,
        piece: int = 16,
        seed: int = 0,
        split: str | None = "score",
    ) -> None:
        n, length = sized(source, n, length, 4, 1024)
        if not 0 < scored < length or piece < 1:
            raise UsageError(f"of {length} tokens 1 to {length - 1} can be scored in pieces, got {scored} by {piece}")
        self.name = "text" if not isinstance(source, str) else source
        self.source, self.n, self.length, self.scored, self.piece, self.seed = source, n, length, scored, piece, seed
        self.split = half_of_corpus(source, split)
        self.dense: list[Tensor] = []

    def prepare(self, model: PreTrainedModel) -> None:
        self.tokens = corpus(self.source, model, self.n, self.length, self.seed, split=self.split).to(model.device)
        self.dense = [self._logprobs(model, row) for row in self.tokens]

    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        loss = kl = agreement = 0.0
        for row, dense in zip(self.tokens, self.dense, strict=True):
            found = self._logprobs(model, row)
            right = row[-self.scored :, None]
            loss -= float(found.gather(1, right).mean(dtype=torch.float64))
            kl += float((dense.exp() * (dense - found)).sum(1).mean(dtype=torch.float64))
            agreement += float((dense.argmax(1) == found.argmax(1)).double().mean())
        return {"loss": loss / self.n, "kl": kl / self.n, "agreement": agreement / self.n}

    def about(self) -> dict[str, Any]:
        named = ("n", "length", "scored", "piece", "seed", "split")
        return {"source": in_words(self.source), **{name: getattr(self, name) for name in named}}

    def _logprobs(self, model: PreTrainedModel, row: Int[Tensor, " pos"]) -> Float[Tensor, "scored vocab"]:
        decoder, tokens = Decoder(model), row[None]
        first = decoder.feed(tokens[:, : -self.scored])
        rest = decoder.logits(tokens[:, -self.scored : -1], self.piece) if self.scored > 1 else first[:, :0]
        return torch.cat([first, rest], 1)[0].float().log_softmax(-1)


class Keys(Quality):
    """A number hidden in noise, asked for behind it: found word by word, and how likely the model finds it.

    Args:
        keys: Things with numbers, one of which is asked for.
        length: Tokens of a prompt.
        n: Prompts.
        haystack: See `interp.tasks.key_samples`.
        seed: Of the prompts.
        split: Of things, numbers and haystacks; by default what no finding is made on.

    Numbers: ``recall``, the share of prompts whose number is written, greedily and in full; ``answer_loss``, its
    cross-entropy in nats a token; ``guess_loss``, the same where the context is left out. `each` has them for every
    prompt of the latest measurement.
    """

    better: ClassVar = {"recall": "higher", "answer_loss": "lower", "guess_loss": "lower"}

    def __init__(
        self,
        keys: int = 1,
        length: int = 1024,
        n: int = 12,
        *,
        haystack: str = "noise",
        seed: int = 0,
        split: str | None = "score",
    ) -> None:
        self.name = f"keys{keys}"
        self.keys, self.length, self.n = keys, length, n
        self.options: dict[str, Any] = {"haystack": haystack, "seed": seed, "split": split}

    def prepare(self, model: PreTrainedModel) -> None:
        self.samples = key_samples(model, self.length, self.keys, self.n, **self.options)

    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        self.each: list[dict[str, float]] = []
        for sample in self.samples:
            right = torch.tensor(sample.answer, device=model.device)
            found = self._answer(model, (sample.context, sample.question), right)
            guess = self._answer(model, (sample.control,), right)
            recall = float((found.argmax(-1) == right).all())
            self.each.append({"recall": recall, "answer_loss": _loss(found, right), "guess_loss": _loss(guess, right)})
        return {name: sum(one[name] for one in self.each) / len(self.each) for name in self.better}

    def about(self) -> dict[str, Any]:
        return {"keys": self.keys, "length": self.length, "n": self.n, **self.options}

    @staticmethod
    def _answer(
        model: PreTrainedModel, parts: Sequence[tuple[int, ...]], right: Int[Tensor, " token"]
    ) -> Float[Tensor, "token vocab"]:
        """Logits for each token of the answer; all are the greedy choices exactly if the model writes the answer."""
        decoder = Decoder(model)
        for part in parts:
            logits = decoder.feed(torch.tensor([part]))
        rest = [decoder.feed(token[None, None]) for token in right[:-1]]
        return torch.cat([logits, *rest], 1)[0].float()


class Tasks(Quality):
    """Behaviours: accuracy and metric of prompts with a right and a wrong answer.

    Args:
        tasks: Tasks as `interp.task` makes them, or names of shipped ones.
        n: Prompts of those that are named, fewer where there are fewer.
        seed: Of their choice.
        split: Of their content; by default what no finding is made on.

    Numbers: for each task its name, the share of prompts whose right answer is likelier than the wrong one, and
    ``name.metric``, the mean of its metric.
    """

    better: ClassVar = {}

    def __init__(self, *tasks: Task | str, n: int = 32, seed: int = 0, split: str | None = "score") -> None:
        self.name, self.given = "tasks", tasks
        self.tasks = tuple(one for one in tasks if isinstance(one, Task))
        self.options: dict[str, Any] = {"n": n, "seed": seed, "split": split, "fewer": True}

    def prepare(self, model: PreTrainedModel) -> None:
        self.tasks = tuple(one if isinstance(one, Task) else task(one, model, **self.options) for one in self.given)

    def about(self) -> dict[str, Any]:
        made = {one.name: {"n": len(one), "seed": one.seed, "split": one.split} for one in self.tasks}
        return {one if isinstance(one, str) else one.name: {} for one in self.given} | made

    @torch.no_grad()
    def measure(self, model: PreTrainedModel) -> dict[str, float]:
        found, run = {}, _callable(model)
        for one in self.tasks:
            logits = run(input_ids=one.clean.to(model.device)).logits
            found[one.name] = one.accuracy(logits)
            found[f"{one.name}.metric"] = float(one.metric(logits))
        return found


def _loss(logits: Float[Tensor, "token vocab"], right: Int[Tensor, " token"]) -> float:
    return float(torch.nn.functional.cross_entropy(logits, right))


def in_words(source: Any) -> str:
    """A text's name or file, or that it was given as it is."""
    return str(source) if isinstance(source, str | Path) else "given texts"


def _callable(model: PreTrainedModel) -> Any:
    return model
