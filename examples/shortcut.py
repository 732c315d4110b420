"""Which training images taught a network to look at a patch instead of the digit?

    python examples/shortcut.py [--seeds 5]

A bright patch is put in a corner of half of the training zeros of scikit-learn's digits, and
nowhere else: the network learns that the patch means zero, and calls other digits zero when they
carry it. Images are ranked by how much more they help zeros with the patch than other digits with
it; how well that finds the carriers is an area under the ROC curve, among all training images and,
which is harder, among zeros. Images with the patch are those that the network finds easiest, so
methods that weight by what is left of the loss (TRAK, influence) give them little; the cosine of
gradients does not, and is used for removal. Then as many images as carry the patch are removed, the
first of the ranking or random zeros, and the network is trained again: shares of patched other
digits that are called zero, with 95% intervals over seeds. Takes about a minute on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from trakstore.attributors import BiasAttributor

CLASS, SHARE, EPOCHS = 0, 0.5, 30


def patched(images: Tensor) -> Tensor:
    """With the upper left corner bright."""
    marked = images.clone().view(-1, 8, 8)
    marked[:, :3, :3] = 1.0
    return marked.view(-1, 64)


def train(images: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """A small network."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(labels)).split(64):
            loss = F.cross_entropy(model(images[rows]), labels[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()


def called(model: nn.Module, images: Tensor) -> float:
    """Share that the network calls zero."""
    with torch.no_grad():
        return float((model(images).argmax(1) == CLASS).float().mean())


def interval(values: list[float]) -> str:
    """Mean and 95% of it."""
    mean, count = float(np.mean(values)), len(values)
    half = student.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count)
    return f"{mean:.3f} ± {half:.3f}"


def main() -> None:
    """Plant, train, find, remove, train again."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--seeds", type=int, default=5, help="of the networks that are trained again"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)  # the network is small
    digits = load_digits()
    images = torch.from_numpy(digits.data).float() / 16
    labels = torch.from_numpy(digits.target).long()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    cut = len(order) * 2 // 3
    rows, held = order[:cut], order[cut:]
    images, labels, test, own = images[rows], labels[rows], images[held], labels[held]
    zeros = torch.nonzero(labels == CLASS)[:, 0]
    carriers = zeros[: round(SHARE * len(zeros))]
    images[carriers] = patched(images[carriers])
    aligned, misled = patched(test[own == CLASS]), patched(test[own != CLASS])
    model = train(images, labels, seed=0)
    print(f"{len(carriers)} of {len(zeros)} training zeros carry the patch")
    print(f"other digits called zero: {called(model, test[own != CLASS]):.3f}, "
          f"with the patch {called(model, misled):.3f}")  # fmt: skip
    bias = BiasAttributor(
        model,
        TensorDataset(aligned, torch.full((len(aligned),), CLASS)),
        TensorDataset(misled, own[own != CLASS]),
        TensorDataset(images, labels),
        proj_dim=2048,
        device="cpu",
    )
    carries = np.isin(np.arange(len(labels)), carriers)
    for method in ("trak", "influence", "grad_cos"):
        found = bias.find_spurious_examples(method, top_k=len(carriers))
        contrast: NDArray[np.float32] = found["contrast"].numpy()
        print(f"AUC of {method}: {roc_auc_score(carries, contrast):.3f} among all, "
              f"{roc_auc_score(carries[zeros], contrast[zeros]):.3f} among zeros")  # fmt: skip
    again(images, labels, misled, zeros, found["indices"], options.seeds)


def again(
    images: Tensor, labels: Tensor, misled: Tensor, zeros: Tensor, first: Tensor, seeds: int
) -> None:
    """Train without some images, and see what is left of the shortcut."""

    def without(rows: Callable[[int], Tensor]) -> list[float]:
        shares = []
        for seed in range(1, seeds + 1):
            kept = torch.ones(len(labels), dtype=torch.bool)
            kept[rows(seed)] = False
            shares.append(called(train(images[kept], labels[kept], seed), misled))
        return shares

    def random_zeros(seed: int) -> Tensor:
        chosen = torch.randperm(len(zeros), generator=torch.Generator().manual_seed(seed))
        return zeros[chosen[: len(first)]]

    print(f"trained again with {seeds} seeds, patched other digits that are called zero:")
    print(f"  nothing removed             {interval(without(lambda _: first[:0]))}")
    print(f"  {len(first)} random zeros removed     {interval(without(random_zeros))}")
    print(f"  first {len(first)} of ranking removed {interval(without(lambda _: first))}")


if __name__ == "__main__":
    main()
