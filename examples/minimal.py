"""TRAK in three lines of algebra, and the same from a store.

    python examples/minimal.py

Two checkpoints of a small network on handwritten digits. First by hand: per-sample gradients of the
margin on both sides (never of the loss on one side: that would flip the sign and count 1 - p twice),
projected by a matrix P with E[P'P] = I, and a kernel of all samples (never of batches, whose gradients
span as many directions as there are batches). Then by the library, which never holds P, or the
gradients, or the features of all samples.
"""

from __future__ import annotations

import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import TensorDataset

import trakstore as ts
from trakstore.attributors import TRAKAttributor
from trakstore.cli.demo import load_images
from trakstore.features import featurize

DIM, TRAIN, TEST = 256, 400, 20


def data() -> dict[str, TensorDataset]:
    """Some of the digits."""
    images, rows = load_images(), {"train": TRAIN, "test": TEST}
    return {
        split: TensorDataset(
            torch.from_numpy(images[split].images[:count]).flatten(1),
            torch.from_numpy(images[split].labels[:count]),
        )
        for split, count in rows.items()
    }


def train(seed: int, x: Tensor, y: Tensor) -> nn.Module:
    """A network that has learned them."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval()


def margin(parameters: dict[str, Tensor], model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """log(p / (1 - p)) of one sample."""
    loss = F.cross_entropy(functional_call(model, parameters, (x[None],)), y[None])
    return -loss - torch.log(-torch.expm1(-loss))


def by_hand(models: list[nn.Module], sides: dict[str, TensorDataset]) -> Tensor:
    """Scores (target, train): mean_c[T_c (Φ_c'Φ_c + λ_c)⁻¹ Φ_c'] times mean_c[1 - p]."""
    products, misses = [], []
    for model in models:
        matrix = TRAKAttributor(model, proj_dim=DIM).projection_matrix[:]  # P', written down
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        features = {}
        for split, side in sides.items():
            found = vmap(grad(margin), (None, None, 0, 0))(parameters, model, *side.tensors)
            features[split] = torch.cat([g.flatten(1) for g in found.values()], 1) @ matrix
        phi, target = features["train"].double(), features["test"].double()
        damping = phi.square().sum() / len(phi) * torch.eye(DIM)
        products.append(target @ torch.linalg.inv(phi.T @ phi + damping) @ phi.T)
        x, y = sides["train"].tensors
        with torch.no_grad():
            misses.append(1 - model(x).softmax(1)[torch.arange(len(y)), y])
    return torch.stack(products).mean(0) * torch.stack(misses).mean(0)


def by_library(models: list[nn.Module], sides: dict[str, TensorDataset], where: str) -> ts.Scores:
    """The same scores, those of the paper, lazy."""
    for epoch, model in enumerate(models):
        for split, side in sides.items():
            spec = ts.ProjectionSpec("sjlt", dim=DIM)
            featurize(model, side, where, epoch=epoch, split=split, projector=spec)
    return ts.trak_scores(ts.open_store(where), temperature=None)


def main() -> None:
    """Compute both, and compare."""
    sides = data()
    models = [train(seed, *sides["train"].tensors) for seed in (0, 1)]
    scores = by_hand(models, sides)
    with tempfile.TemporaryDirectory() as folder:
        stored = by_library(models, sides, f"{folder}/run.zarr")
        difference = np.abs(np.asarray(stored) - scores.numpy()).max() / scores.abs().max()
        top = ts.top_k(stored, 5)
    labels = {split: side.tensors[1].numpy() for split, side in sides.items()}
    for target, row in enumerate(top["position"].values[:5]):
        print(f"a {labels['test'][target]}: learned most from {labels['train'][row].tolist()}")
    print(f"largest difference between the two, of the largest score: {difference:.1e}")
    if difference > 1e-3:
        raise SystemExit("they should be equal")


if __name__ == "__main__":
    main()
