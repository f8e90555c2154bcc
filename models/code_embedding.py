"""Code vectors that share strength: a code is its parents and what sets it apart from them.

    e(c) = v(c) + v(parent of c) + v(its parent) + ... + mean over the words of c's text of u(word)

Parents are the shorter forms of a code that the vocabulary holds (`tsfm.codes.parents`): I50.23
shares with I50, furosemide with its ATC groups, a laboratory test in two units with itself. A
vector of its own starts the nearer to nothing the fewer events its code has, so that a rare code
begins as its parent is and departs as far as its events show; one that training never saw stays
there. Words of descriptions, hashed into a fixed number of buckets, let codes share across branches
and coding systems; their vectors start at nothing.

Parents and words are kept with the weights, so a model directory needs nothing beside itself.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from tsfm import codes
from tsfm.kernels.argument_checks import wrong_shape

WORD_BUCKETS = 1 << 12
MOST_WORDS = 16  # of one description; what makes a code is said first
MOST_PARENTS = 16
RARE = 50.0  # events at which half of the variance of a code's own vector is there from the start
_NONE = -1


class CodeSharing(nn.Module):
    """Sums of the vectors of codes, their parents and their words.

    Until `set_codes` says otherwise, no code has parents or words.

    Args:
        n_codes: Size of the vocabulary.
        d_model: Width of the vectors.
        n_word_buckets: Buckets of the words of descriptions; 0 for none.
    """

    parent: Tensor
    words: Tensor

    def __init__(self, n_codes: int, d_model: int, *, n_word_buckets: int = 0) -> None:
        """Start without parents and without words."""
        super().__init__()
        # Ids as floating numbers: what a model keeps is averaged while it trains, and float64
        # holds every id, and the average of equal ones, exactly.
        none = torch.full((n_codes,), _NONE, dtype=torch.float64)
        self.register_buffer("parent", none)
        self.word = None
        if n_word_buckets:
            self.register_buffer("words", none[:, None].repeat(1, MOST_WORDS))
            self.word = nn.Embedding(n_word_buckets, d_model)
            nn.init.zeros_(self.word.weight)

    @torch.no_grad()
    def set_codes(
        self, names: Sequence[str], descriptions: Mapping[str, str] | None = None
    ) -> None:
        """Find the parents of every code, and the words of its description.

        Args:
            names: Codes of the vocabulary in the order of their ids.
            descriptions: Code to text, as `metadata/codes.parquet` of an event table has it.

        Raises:
            InputError: There are not as many names as codes.
        """
        if len(names) != len(self.parent):
            raise wrong_shape("names", torch.empty(len(names)), f"({len(self.parent)},)")
        parent = torch.from_numpy(nearest_parents(names))
        self.parent.copy_(parent)
        if self.word is not None:
            self.words.fill_(_NONE)
            for index, name in enumerate(names):
                text = (descriptions or {}).get(name) or ""
                found = hashed_words(text, self.word.num_embeddings)
                self.words[index, : len(found)] = torch.tensor(found).to(self.words)

    @torch.no_grad()
    def shrink(self, tables: Sequence[nn.Embedding], counts: NDArray[np.int64]) -> None:
        """Bring freshly drawn vectors to their codes' share of what they are to add up to.

        A vector is multiplied by sqrt(n / (n + `RARE`)), n the events of its code and all below it,
        and, since a code is a sum over its line, by one over the root of its place in that line.

        Args:
            tables: Vectors of the codes, changed in place.
            counts: (V,) training events of each code.

        Raises:
            InputError: There are not as many counts as codes.
        """
        if counts.shape != (len(self.parent),):
            raise wrong_shape("counts", torch.from_numpy(counts), f"({len(self.parent)},)")
        line = self._line(torch.arange(len(counts), device=self.parent.device))
        known = line >= 0
        own = torch.from_numpy(counts).to(self.parent)
        total = torch.zeros_like(self.parent).index_add(
            0, line[known], own.unsqueeze(1).expand_as(line)[known]
        )
        share = torch.sqrt(total / (total + RARE) / known.sum(1))
        for table in tables:
            table.weight.mul_(share.unsqueeze(1).to(table.weight))

    def forward(
        self, code: Int[Tensor, " token"], tables: Sequence[nn.Embedding]
    ) -> list[Float[Tensor, "token model"]]:
        """Vectors of the tokens' codes from each table; the first table's hold the words as well.

        Each code of the batch is summed once, however many tokens it has.

        Args:
            code: Token ids.
            tables: Own vectors of all codes.
        """
        present, place = code.unique(return_inverse=True)
        line = self._line(present)
        vectors = [_bags(line, table.weight, "sum") for table in tables]
        if self.word is not None:
            words = _bags(self.words[present].long(), self.word.weight, "mean")
            vectors[0] = vectors[0] + words
        return [vector[place] for vector in vectors]

    def _line(self, code: Int[Tensor, " code"]) -> Int[Tensor, "code place"]:
        """Each code, its parent, the parent's parent and so on; -1 behind the last."""
        parent = self.parent.long()
        line, at = [code], parent[code]
        # A bound, so that a damaged file with a circle in it can't hold the reader up.
        while len(line) <= MOST_PARENTS and bool((at >= 0).any()):
            line.append(at)
            at = torch.where(at >= 0, parent[at.clamp(min=0)], _NONE)
        return torch.stack(line, 1)


def nearest_parents(names: Sequence[str]) -> NDArray[np.int64]:
    """(V,) id of the nearest parent that is itself among the names, -1 where none is.

    >>> nearest_parents(["LAB", "LAB//50912//mg/dL", "LAB//50912"]).tolist()
    [-1, 2, 0]
    """
    ids = {name: index for index, name in enumerate(names)}
    found = [
        next((ids[parent] for parent in codes.parents(name) if parent in ids), _NONE)
        for name in names
    ]
    return np.array(found, np.int64)


def hashed_words(text: str, n_buckets: int) -> list[int]:
    """Buckets of the first different words of a text; letters and digits only, in lower case.

    The hash is the same on every machine and in every run.

    Args:
        text: Description of a code.
        n_buckets: Buckets.
    """
    words = dict.fromkeys(re.findall(r"[^\W_]+", text.lower()))
    digests = [hashlib.blake2b(word.encode(), digest_size=8).digest() for word in words]
    return [int.from_bytes(digest, "big") % n_buckets for digest in digests[:MOST_WORDS]]


def _bags(ids: Int[Tensor, "bag place"], weight: Tensor, mode: str) -> Float[Tensor, "bag model"]:
    """Sum or mean of each row's vectors; -1 is no vector, and a row without any is nought."""
    known = ids >= 0
    sizes = known.sum(1)
    return F.embedding_bag(ids[known], weight, sizes.cumsum(0) - sizes, mode=mode)
