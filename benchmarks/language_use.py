"""What highest scored documents do: to train on them, and to train without them.

    python benchmarks/language_use.py [small | large] [--targets 32] [--out accuracy] [--small]

Tail-patch: what the ten documents that a method ranks first for a target add to one step of Adam, from
the last checkpoint with the moments of its training, and the fall of the target's loss. Removal: models
that are trained again without the 38 documents (5%) ranked first, two for each of a quarter of the
targets, and the rise of its loss over that of eight models without 38 random ones. Means over targets
with 95% intervals; of our scores (2,048 numbers a row, four checkpoints), of those of gradients as they
are, of BM25, of the cosine of mean last states, and of documents at random. Truth and stores are those
of ``accuracy.py lm``, of which only the checkpoints are needed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy_language import DRAWS, LanguageGround
from language import LanguageModel, mean_losses
from language_truth import Recipe, steps
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call

import trakstore as ts
from trakstore.evaluation.intervals import mean_interval

F64 = NDArray[np.float64]
PATCHED, REMOVED, TRAINED = 10, 0.05, 2
SHARE, BETA = 0.1, 0.999  # of a gradient in Adam's first moment, and Adam's factor of the second
UNTRAINED = ("random", "cosine of last states")  # which nothing is trained without


def bm25(train: NDArray[np.int64], target: NDArray[np.int64], k1: float = 1.5) -> F64:
    """Score documents of one length (target, train) by the tokens that they share with a target."""
    words = int(max(train.max(), target.max())) + 1
    counts = np.stack([np.bincount(one, minlength=words) for one in train]).astype(np.float64)
    held = (counts > 0).sum(0)
    rare = np.log1p((len(train) - held + 0.5) / (held + 0.5))
    weights = rare * counts * (k1 + 1) / (counts + k1)
    asked = np.stack([np.bincount(one, minlength=words) for one in target])
    found: F64 = asked @ weights.T
    return found


def states_cosine(model: LanguageModel, train: Tensor, target: Tensor) -> F64:
    """Compute the cosine (target, train) of the mean of each document's last states."""
    kept: list[Tensor] = []
    hook = model.norm.register_forward_hook(lambda _m, _i, out: kept.append(out.mean(1)))
    with torch.no_grad():
        model(train), model(target)
    hook.remove()
    left, right = (torch.nn.functional.normalize(one, dim=1) for one in reversed(kept))
    return (left @ right.T).double().numpy()


def patched(
    ground: LanguageGround, model: LanguageModel, rows: NDArray[np.int64], target: Tensor
) -> float:
    """Return by how much a step on some documents lowers the loss of a target."""
    last, recipe = max(ground.truth.states), ground.recipe
    moments = ground.truth.moments[last]
    count = last * -(-len(ground.truth.text.train) // recipe.batch_size)  # of steps so far
    ids = torch.from_numpy(ground.truth.text.train[rows])
    parameters = dict(model.named_parameters())
    loss = mean_losses(model(ids), ids).mean()
    found = torch.autograd.grad(loss, list(parameters.values()))
    moved = {}
    for (name, p), g in zip(parameters.items(), found, strict=True):
        # What these documents add to that step: their share of Adam's first moment. A whole step of
        # few documents is so long that it raises most losses.
        root = (moments[name] / (1 - BETA**count)).sqrt()
        moved[name] = p.detach() - recipe.rate * SHARE * g / (root + 1e-8)
    with torch.no_grad():
        before = mean_losses(model(target), target)
        after = mean_losses(functional_call(model, moved, (target,)), target)
    return float(before - after)


def without(recipe: Recipe, ground: LanguageGround, rows: NDArray[np.int64], seed: int) -> Tensor:
    """Losses of all targets of a model that is trained without some documents."""
    text = ground.truth.text
    left = np.setdiff1d(np.arange(len(text.train)), rows)
    *_, (model, _) = steps(recipe, torch.from_numpy(text.train), left, 1000 + seed, ground.seed)
    targets = torch.from_numpy(text.target)
    with torch.no_grad():
        return mean_losses(model(targets), targets)


def told(name: str, values: Sequence[float]) -> str:
    mean, low, high = mean_interval(values)
    return f"{name:36} {mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def rankings(ground: LanguageGround, small: bool) -> dict[str, NDArray[Any]]:
    """Scores (target, train) of each method; none of them for random documents."""
    dim, text = 64 if small else 2048, ground.truth.text
    train, target = torch.from_numpy(text.train), torch.from_numpy(text.target)
    model = ground.recipe.model()
    model.load_state_dict(ground.truth.states[max(ground.truth.states)])
    random = np.random.default_rng(0).random((len(target), len(train)))
    return {
        f"trak_scores, scale, {DRAWS} draws": np.asarray(ts.trak_scores(ground.best(dim))),
        "trak_scores, one projection": np.asarray(ts.trak_scores(ground.store(dim))),
        "BM25": bm25(text.train, text.target),
        "cosine of last states": states_cosine(model, train, target),
        "random": random,
    }


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("kind", nargs="?", choices=["small", "large"], default="small")
    parser.add_argument("--targets", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("accuracy"))
    parser.add_argument("--small", action="store_true", help="few documents and epochs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    kind = "tiny" if options.small else options.kind
    ground = LanguageGround(kind, options.out, 1, 1, options.seed)
    model = ground.recipe.model()
    model.load_state_dict(ground.truth.states[max(ground.truth.states)])
    text, targets = ground.truth.text, torch.from_numpy(ground.truth.text.target)
    chosen = np.random.default_rng(0).permutation(len(targets))[: options.targets]
    orders = {
        name: np.argsort(-scores, 1) for name, scores in rankings(ground, options.small).items()
    }
    print(
        f"{kind}: fall of a target's loss by a step on {PATCHED} documents, {len(chosen)} targets"
    )
    for name, order in orders.items():
        falls = [patched(ground, model, order[t, :PATCHED], targets[t : t + 1]) for t in chosen]
        print(told(name, falls), flush=True)
    print(f"{kind}: rise of its loss without {REMOVED:.0%} of documents, over random ones")
    count = max(1, int(REMOVED * len(text.train)))
    rng = np.random.default_rng(1)
    plain = torch.stack([
        without(ground.recipe, ground, rng.permutation(len(text.train))[:count], seed)
        for seed in range(4 * TRAINED)
    ]).mean(0)  # fmt: skip
    for name in [name for name in orders if name not in UNTRAINED]:
        rises, order = [], orders[name]
        for t in chosen[: max(2, options.targets // 4)]:
            losses = [
                without(ground.recipe, ground, order[t, :count], s)[t] for s in range(TRAINED)
            ]
            rises.append(float(torch.stack(losses).mean() - plain[t]))
        print(told(name, rises), flush=True)


if __name__ == "__main__":
    main()
