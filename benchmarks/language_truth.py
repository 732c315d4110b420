"""Losses of small language models that were retrained on halves of a text, kept in one file.

Models are trained one after the other, each process on one thread: stacked ones (``vmap``, or batched
products written by hand) took 1.2 to 2.9 times as long, since four models' logits fill no cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from language import SMALL, LanguageModel, Sizes, Text, make_text, mean_losses
from numpy.typing import NDArray
from torch import Tensor

from trakstore.progress import ProgressLine

State = dict[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """Shape of a model, and how one is trained: by Adam, without dropout or decay."""

    width: int = 48
    layers: int = 2
    sizes: Sizes = field(default_factory=Sizes)
    epochs: int = 12
    batch_size: int = 32
    rate: float = 2e-3

    def model(self) -> LanguageModel:
        return LanguageModel(self.width, self.layers, sizes=self.sizes)

    @property
    def kept(self) -> tuple[int, ...]:
        """Epochs after which the model of all documents is kept."""
        return tuple(sorted({max(1, self.epochs * part // 4) for part in (1, 2, 3, 4)}))


RECIPES = {
    "small": Recipe(),
    "large": Recipe(width=64, layers=3),
    "tiny": Recipe(width=16, layers=1, sizes=SMALL, epochs=2, batch_size=8),
}


@dataclass(frozen=True)
class Truth:
    """Text, retrained models' losses of target documents, and the checkpoints of all documents.

    Attributes
    ----------
    subsets : ndarray of bool, shape (models, train)
    losses : ndarray of float32, shape (models, target)
        Mean over the tokens of a document.
    states, moments : dict of state dicts, by epoch
        Parameters, and Adam's second moments of them, not corrected for their bias.
    """

    text: Text
    subsets: NDArray[np.bool_]
    losses: NDArray[np.float32]
    states: dict[int, State]
    moments: dict[int, State]

    def save(self, path: Path) -> None:
        kept: dict[str, Any] = {"train": self.text.train, "target": self.text.target}
        kept |= {"modules": self.text.modules, "subsets": self.subsets, "losses": self.losses}
        for kind, states in (("state", self.states), ("moment", self.moments)):
            for epoch, state in states.items():
                kept |= {f"{kind}/{epoch}/{name}": x.numpy() for name, x in state.items()}
        np.savez(path, **kept)

    @classmethod
    def load(cls, path: Path) -> Truth:
        kinds: dict[str, dict[int, State]] = {"state": {}, "moment": {}}
        with np.load(path) as file:
            for key in file.files:
                if "/" in key:
                    kind, epoch, name = key.split("/")
                    kinds[kind].setdefault(int(epoch), {})[name] = torch.from_numpy(file[key])
            text = Text(file["train"], file["target"], file["modules"].tolist())
            return cls(text, file["subsets"], file["losses"], kinds["state"], kinds["moment"])


def steps(
    recipe: Recipe, ids: Tensor, rows: NDArray[np.int64], seed: int, start: int = 0
) -> Iterator[tuple[LanguageModel, torch.optim.Adam]]:
    """Train on some rows, and yield the model and its optimizer after each epoch.

    All models of a text begin with the weights of seed ``start``, and each sees its own rows in an
    order of its own.
    """
    torch.manual_seed(start)
    model, rng = recipe.model(), np.random.default_rng(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.rate, fused=True)
    for _ in range(recipe.epochs):
        order = rng.permutation(rows)
        for at in range(0, len(order), recipe.batch_size):
            batch = ids[order[at : at + recipe.batch_size]]
            optimizer.zero_grad()
            mean_losses(model(batch), batch).mean().backward()
            optimizer.step()
        yield model, optimizer


def retrained_losses(
    recipe: Recipe, text: Text, subset: NDArray[np.bool_], seed: int, start: int
) -> NDArray[np.float32]:
    """Losses of the target documents (target,) of a model trained on a subset."""
    ids, targets = torch.from_numpy(text.train), torch.from_numpy(text.target)
    *_, (model, _) = steps(recipe, ids, np.flatnonzero(subset), seed, start)
    with torch.no_grad():
        return mean_losses(model(targets), targets).numpy()


def checkpoints(recipe: Recipe, text: Text, seed: int) -> tuple[dict[int, State], dict[int, State]]:
    """Parameters and Adam's second moments of a model of all documents, by epoch."""
    ids, states, moments = torch.from_numpy(text.train), {}, {}
    rows = np.arange(len(ids))
    for epoch, (model, optimizer) in enumerate(steps(recipe, ids, rows, seed, seed), 1):
        if epoch in recipe.kept:
            states[epoch] = {name: p.detach().clone() for name, p in model.named_parameters()}
            moments[epoch] = {name: optimizer.state[p]["exp_avg_sq"].clone()
                              for name, p in model.named_parameters()}  # fmt: skip
    return states, moments


def halves(count: int, rows: int, seed: int) -> NDArray[np.bool_]:
    """Draw random halves (count, rows)."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.permutation(rows) < rows // 2 for _ in range(count)])


def make_truth(
    recipe: Recipe, path: Path, models: int, repeats: int = 1, seed: int = 0, processes: int = 2
) -> Truth:
    """Retrain models on halves in several processes, or read what a run before has kept.

    The file is written after each repeat, which takes every half once more in another order.
    """
    if path.exists():
        before = Truth.load(path)
        if len(before.subsets) >= models * repeats:
            return before
        text, states, moments = before.text, before.states, before.moments
        losses, done = [before.losses], len(before.subsets) // models
    else:
        text = make_text(recipe.sizes, seed)
        states, moments = checkpoints(recipe, text, seed)
        losses, done = [], 0
    subsets = halves(models, len(text.train), seed + 1)
    context = get_context("spawn")
    with (
        ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,)) as pool,
        ProgressLine("training", models * (repeats - done), unit="models") as line,
    ):
        for turn in range(done, repeats):
            orders = range(turn * models + 1, (turn + 1) * models + 1)
            what: Sequence[Any] = (repeat(recipe), repeat(text), subsets, orders, repeat(seed))
            found = []
            for one in pool.map(retrained_losses, *what):
                found.append(one)
                line.advance(1)
            losses.append(np.stack(found))
            both = np.tile(subsets, (turn + 1, 1)), np.concatenate(losses)
            truth = Truth(text, *both, states, moments)
            truth.save(path)
    return truth


if __name__ == "__main__":
    import sys

    torch.set_num_threads(1)
    make_truth(RECIPES[sys.argv[1]], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
