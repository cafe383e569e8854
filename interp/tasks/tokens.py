"""Text to token ids as a model reads them, and characters to token positions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from interp.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["Encoded", "Encoder"]

PROBE = "a"


@dataclass(frozen=True)
class Encoded:
    """A text's token ids with those that the model wants before it, and the characters that each one covers."""

    ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]

    def token_at(self, span: tuple[int, int]) -> int:
        """The index of the token that covers the last character of `span`, as words of several tokens end there."""
        last = span[1] - 1
        for index, (start, end) in enumerate(self.spans):
            if start <= last < end:
                return index
        raise UsageError(f"no token covers the characters {span[0]} to {span[1]}")


class Encoder:
    """A model's tokenizer, as the tasks use it.

    Args:
        model: a `TransformerBridge`, a deployed model, or anything with a `tokenizer` and `to_tokens`.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.tokenizer: Any = getattr(model, "tokenizer", None)
        self._singles: dict[str, int | None] = {}

    def encode(self, text: str) -> Encoded:
        """`text` as the model reads it: what the model wants before it (a BOS token), then its tokens."""
        self._require_tokenizer()
        if getattr(self.tokenizer, "is_fast", False):
            read = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            ids, spans = read["input_ids"], [(int(a), int(b)) for a, b in read["offset_mapping"]]
        else:
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            ends = [len(self.tokenizer.decode(ids[: i + 1])) for i in range(len(ids))]
            spans = list(zip([0, *ends], ends, strict=False))
        before = [(-1, -1)] * len(self.prefix)
        return Encoded((*self.prefix, *ids), (*before, *spans))

    def continuation(self, text: str, answer: str) -> tuple[int, ...] | None:
        """The tokens that `answer` adds to `text`; None if it changes how `text` itself is split."""
        context = self.encode(text).ids
        both = self.encode(text + answer).ids
        return both[len(context) :] if both[: len(context)] == context else None

    def single(self, word: str) -> int | None:
        """The id of `word` on its own (with its leading space) if it is a single token, else None."""
        if word not in self._singles:
            added = self.continuation(PROBE, word)
            self._singles[word] = added[0] if added is not None and len(added) == 1 else None
        return self._singles[word]

    def decode(self, ids: tuple[int, ...]) -> tuple[str, ...]:
        """Each id as text; without a tokenizer the id itself."""
        if self.tokenizer is None:
            return tuple(str(i) for i in ids)
        return tuple(self.tokenizer.decode([i]) for i in ids)

    def text(self, ids: tuple[int, ...]) -> str:
        """The ids as one text; without a tokenizer the ids themselves."""
        return " ".join(self.decode(ids)) if self.tokenizer is None else str(self.tokenizer.decode(list(ids)))

    @cached_property
    def prefix(self) -> tuple[int, ...]:
        """The token ids that the model wants before every text, such as BOS."""
        if self.tokenizer is None:
            bos = getattr(getattr(self.model, "cfg", None), "bos_token_id", None)
            return () if bos is None else (int(bos),)
        ids = list(self.tokenizer(PROBE, add_special_tokens=False)["input_ids"])
        read = self._probe.tolist()
        if not ids:
            return tuple(read)
        for start in range(len(read) - len(ids) + 1):
            if read[start : start + len(ids)] == ids:
                return tuple(read[:start])
        raise UsageError(f"the model reads {PROBE!r} as {read}, its tokenizer as {ids}: they don't belong together")

    @cached_property
    def device(self) -> torch.device:
        """Where the model wants its tokens."""
        import torch

        if self.tokenizer is None:
            return torch.device(getattr(getattr(self.model, "cfg", None), "device", None) or "cpu")
        return self._probe.device

    @cached_property
    def padding(self) -> int:
        """A token id to pad with on the right, where a causal model never looks back from."""
        for name in ("pad_token_id", "eos_token_id", "bos_token_id"):
            if (value := getattr(self.tokenizer, name, None)) is not None:
                return int(value)
        return 0

    @cached_property
    def vocabulary(self) -> list[int]:
        """The ids of all ordinary tokens, without special ones."""
        size = getattr(getattr(self.model, "cfg", None), "d_vocab", None)
        if self.tokenizer is not None:
            size = min(len(self.tokenizer), size or len(self.tokenizer))
        if not size:
            raise UsageError("the model has neither a tokenizer nor cfg.d_vocab, so it has no tokens to draw from")
        special = {*self.prefix, *(getattr(self.tokenizer, "all_special_ids", None) or ())}
        added = getattr(self.tokenizer, "added_tokens_decoder", None) or {}
        special |= {index for index, token in added.items() if token.special}
        return [index for index in range(int(size)) if index not in special]

    @cached_property
    def context(self) -> int | None:
        """How many tokens the model reads at most, None if it doesn't say."""
        limit = getattr(getattr(self.model, "cfg", None), "n_ctx", None)
        return int(limit) if limit else None

    @cached_property
    def _probe(self) -> Tensor:
        if not hasattr(self.model, "to_tokens"):  # a Hugging Face model, which leaves it to the tokenizer
            return self.tokenizer(PROBE, return_tensors="pt")["input_ids"][0].to(self.model.device)
        return self.model.to_tokens(PROBE)[0]

    def _require_tokenizer(self) -> None:
        if self.tokenizer is None:
            raise UsageError("this model has no tokenizer, so it has no texts; the task 'induction' needs none")
