"""Functions of the standard library as short documents of tokens, and a small model of them."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

PIECE = re.compile(r" ?[A-Za-z_]+|[0-9]+|\n *| +|[^\sA-Za-z0-9_]")
CHUNKS = 3  # documents of one function at most, since a few long ones would fill the text


@dataclass(frozen=True)
class Sizes:
    """Sizes of a text: modules, documents of each on both sides, tokens of a document, vocabulary."""

    modules: int = 32
    train: int = 24
    target: int = 4
    length: int = 48
    vocabulary: int = 600


SMALL = Sizes(modules=4, train=8, target=2, length=16, vocabulary=160)


@dataclass(frozen=True)
class Text:
    """Tokens of train and of held-out documents (documents, length), and the modules they are of."""

    train: NDArray[np.int64]
    target: NDArray[np.int64]
    modules: list[str]


def make_text(sizes: Sizes, seed: int = 0) -> Text:
    """Draw documents from modules; another seed takes other modules, as long as there are any."""
    each = sizes.train + sizes.target
    library = Path(sysconfig.get_path("stdlib"))
    sources = {path.stem: functions(path) for path in sorted(library.glob("*.py"))}
    # A token is two to four characters: modules of shorter functions cannot fill their share.
    long = [name for name, texts in sources.items()
            if sum(min(len(text) // (4 * sizes.length), CHUNKS) for text in texts) >= each]  # fmt: skip
    order = np.random.default_rng(0).permutation(len(long))
    taken = [long[i] for i in np.roll(order, -seed * sizes.modules)[: sizes.modules]]
    encoder = Encoder([text for name in taken for text in sources[name]], sizes.vocabulary)
    rng, train, target = np.random.default_rng(seed), [], []
    for name in taken:
        documents = cut(map(encoder, sources[name]), sizes.length)
        assert len(documents) >= each, f"{name} has {len(documents)} documents of {each}"
        drawn = documents[rng.permutation(len(documents))[:each]]
        train.append(drawn[: sizes.train])
        target.append(drawn[sizes.train :])
    return Text(np.concatenate(train), np.concatenate(target), taken)


def functions(path: Path) -> list[str]:
    """Return the source of each outermost function and method of a file."""
    source = path.read_text(encoding="utf-8", errors="replace")
    tree = ast.parse(source)
    bodies = [tree.body, *(one.body for one in tree.body if isinstance(one, ast.ClassDef))]
    lines = source.splitlines()
    found = [one for body in bodies for one in body if isinstance(one, ast.FunctionDef)]
    return ["\n".join(lines[one.lineno - 1 : one.end_lineno]) for one in found]


def cut(documents: Iterable[list[int]], length: int) -> NDArray[np.int64]:
    """Cut the tokens of each function into documents (documents, length); a short rest is left."""
    starts = range(0, CHUNKS * length, length)
    chunks = (tokens[at : at + length] for tokens in documents for at in starts)
    return np.array([one for one in chunks if len(one) == length], dtype=np.int64)


class Encoder:
    """Byte-pair encoding of the pieces of a text: its characters, and pairs joined by frequency."""

    def __init__(self, texts: list[str], vocabulary: int) -> None:
        counts = Counter(piece for text in texts for piece in PIECE.findall(text))
        letters = Counter(letter for text in texts for letter in text)
        common = sorted(letters, key=lambda one: (-letters[one], one))[: vocabulary // 2]
        self.kinds = {letter: number for number, letter in enumerate(["", *sorted(common)])}
        self.ranks: dict[tuple[str, str], int] = {}
        self.known: dict[str, list[int]] = {}
        words = [(tuple(piece), count) for piece, count in counts.items()]
        pairs, where = Counter[tuple[str, str]](), defaultdict[tuple[str, str], set[int]](set)
        for number, (word, count) in enumerate(words):
            note(pairs, where, number, word, count)
        while len(self.kinds) < vocabulary:
            best = max(pairs, key=lambda one: (pairs[one], one))
            self.ranks[best] = len(self.ranks)
            self.kinds["".join(best)] = len(self.kinds)
            for number in list(where[best]):
                word, count = words[number]
                note(pairs, where, number, word, -count)
                words[number] = join(word, best), count
                note(pairs, where, number, *words[number])

    def __call__(self, text: str) -> list[int]:
        """Tokens of a text; 0 stands for a rare character."""
        return [token for piece in PIECE.findall(text) for token in self.piece(piece)]

    def piece(self, piece: str) -> list[int]:
        if piece not in self.known:
            word = tuple(piece)
            while pairs := [pair for pair in pairwise(word) if pair in self.ranks]:
                word = join(word, min(pairs, key=self.ranks.__getitem__))
            self.known[piece] = [self.kinds.get(part, 0) for part in word]
        return self.known[piece]


def note(
    pairs: Counter[tuple[str, str]],
    where: dict[tuple[str, str], set[int]],
    number: int,
    word: tuple[str, ...],
    count: int,
) -> None:
    """Add a word's pairs to their counts, or take them away for a count below 0."""
    for pair in pairwise(word):
        pairs[pair] += count
        (where[pair].add if count > 0 else where[pair].discard)(number)


def join(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """Join a pair wherever it stands in a word."""
    if pair not in set(pairwise(word)):
        return word
    joined, at = [], 0
    while at < len(word):
        both = word[at : at + 2] == pair
        joined.append("".join(pair) if both else word[at])
        at += 2 if both else 1
    return tuple(joined)


class Block(nn.Module):
    """Causal attention and a feed-forward part, each added to what comes in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        parts = self.qkv(self.first(h)).unflatten(-1, (3, self.heads, -1)).transpose(1, 3)
        q, k, v = parts.unbind(2)  # (documents, heads, length, width of a head)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        h = h + self.out(mixed.transpose(1, 2).flatten(2))
        return h + self.down(F.gelu(self.up(self.second(h))))


class LanguageModel(nn.Module):
    """Decoder of tokens: by default 116,544 parameters."""

    def __init__(
        self, width: int = 48, layers: int = 2, heads: int = 4, sizes: Sizes = Sizes()
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(sizes.vocabulary, width)
        self.position = nn.Embedding(sizes.length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, sizes.vocabulary, bias=False)
        for table in (self.token, self.position):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        logits: Tensor = self.head(self.norm(self.blocks(h)))
        return logits


def mean_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean loss of each document's tokens, from the second on."""
    losses = F.cross_entropy(
        logits[..., :-1, :].flatten(0, -2), ids[..., 1:].flatten(), reduction="none"
    )
    return losses.unflatten(0, ids[..., 1:].shape).mean(-1)
