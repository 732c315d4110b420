"""When did a network learn to add, and from which examples?

    python examples/grokking.py [--steps 8000] [--out grokking.png]

A small network learns a + b modulo 31 from half of all pairs: it knows those by heart within some
hundred steps, and all others only thousands of steps later. Twelve checkpoints are featurized; the
scores of test pairs are followed over them; the change across the jump of the test accuracy is
compared with that between checkpoints of one phase, and with that between two seeds of the
projection; and the pairs that gained most are compared with random ones, whatever comes out. Needs
matplotlib; takes one or two minutes on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trakstore as ts
from trakstore.analysis import (
    Transition,
    change_point,
    compare_properties,
    evolution,
    modular_addition,
    training_dynamics,
    transition,
)
from trakstore.attributors import TrainingDynamicsTracker
from trakstore.features import Job, featurize_job

MODULUS, SHARE, WIDTH, TRACK = 31, 0.5, 128, 20


class Adder(nn.Module):
    """Embeddings of both numbers, one hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = nn.Embedding(MODULUS, 64)
        self.up, self.down = nn.Linear(2 * 64, WIDTH), nn.Linear(WIDTH, MODULUS)

    def forward(self, pairs: Tensor) -> Tensor:
        """Logits of the sum, shapes (batch, 2) -> (batch, 31)."""
        logits: Tensor = self.down(F.relu(self.up(self.numbers(pairs).flatten(1))))
        return logits


class Pairs:
    """Pairs of numbers and their sums."""

    def __init__(self, rows: Tensor) -> None:
        self.pairs = torch.stack([rows // MODULUS, rows % MODULUS], dim=1)
        self.sums = self.pairs.sum(1) % MODULUS

    def __len__(self) -> int:
        return len(self.sums)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.pairs[index], self.sums[index]


def accuracy(model: Adder, data: Pairs) -> float:
    with torch.no_grad():
        return float((model(data.pairs).argmax(1) == data.sums).float().mean())


def train(
    data: Pairs, test: Pairs, steps: int, store: str
) -> tuple[Adder, dict[int | str, dict[str, Tensor]], list[tuple[float, float]]]:
    """The model, twelve checkpoints, and their accuracies; samples are tracked on the way."""
    torch.manual_seed(0)
    model, kept, curve = Adder(), {}, []
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1.0, betas=(0.9, 0.98))
    marks = {max(1, steps * i // 12) for i in range(1, 13)}
    with TrainingDynamicsTracker(data, 50, store) as tracker:
        for step in range(1, steps + 1):
            logits = model(data.pairs)
            losses = F.cross_entropy(logits, data.sums, reduction="none")
            optimiser.zero_grad()
            losses.mean().backward()
            optimiser.step()
            if step % TRACK == 0:
                tracker.update(step, 0, None, data.sums, logits, losses, ids=range(len(data)))
            if step in marks:
                kept[step] = {name: one.clone() for name, one in model.state_dict().items()}
                curve.append((accuracy(model, data), accuracy(model, test)))
                print(f"step {step}: train {curve[-1][0]:.2f}, test {curve[-1][1]:.2f}", flush=True)
    return model, kept, curve


def draw(path: Path, epochs: list[Any], curve: list[tuple[float, float]], found: Any) -> None:
    """Accuracies, and how scores of test pairs change, over checkpoints."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, sharex=True, figsize=(8, 6), layout="constrained")
    for name, values in zip(("train", "test"), zip(*curve, strict=True), strict=True):
        above.plot(epochs, values, marker="o", label=name)
    above.set_ylabel("accuracy")
    above.legend()
    like = found["spearman"].mean("target")
    below.plot(epochs, like, marker="o", color="tab:green", label="like the checkpoint before")
    below.plot(
        epochs, found["kept"].mean("target"), marker="s", color="tab:red", label="top 10 kept"
    )
    below.set(xlabel="step", ylabel="mean over test pairs")
    below.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Train, featurize, follow, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--out", type=Path, default=Path("grokking.png"))
    options = parser.parse_args()
    torch.set_num_threads(1)  # the network is small
    order = torch.randperm(MODULUS**2, generator=torch.Generator().manual_seed(0))
    cut = round(SHARE * len(order))
    data, test = Pairs(order[:cut]), Pairs(order[cut:])
    with tempfile.TemporaryDirectory() as folder:
        where = f"{folder}/run.zarr"
        model, checkpoints, curve = train(data, test, options.steps, where)
        places = (where, f"{folder}/seed.zarr")
        for seed, place in enumerate(places):
            job = Job(
                model,
                {"train": data, "test": test},
                projector=ts.ProjectionSpec("sjlt", dim=1024, seed=seed),
                checkpoints=checkpoints,
                batch_size=128,
            )
            featurize_job(job, place)
        report(*map(ts.open_store, places), data, curve, options.out)


def report(
    store: ts.FeatureStore,
    other: ts.FeatureStore,
    data: Pairs,
    curve: list[tuple[float, float]],
    out: Path,
) -> None:
    """What the store says; the other one has the same checkpoints under another seed."""
    scores = ts.trak_scores(store)
    epochs = list(scores.epochs)
    found = evolution(scores, 10)
    draw(out, epochs, curve, found)
    print(f"picture: {out}")
    jump = change_point([test for _, test in curve])
    before, after = epochs[max(0, jump.low - 1)], epochs[jump.high]
    print(f"test accuracy changes between checkpoints {before} and {after}")
    calm = [
        (a, b) for at, (a, b) in enumerate(pairwise(epochs)) if at + 1 < jump.low or at >= jump.high
    ]
    ends, seeded = (before, after), ts.trak_scores(other, epochs=[before, after])
    nulls = {
        f"from {calm}": [(scores.epoch(a), scores.epoch(b)) for a, b in calm],
        "from another seed of the projection": [(scores.epoch(e), seeded.epoch(e)) for e in ends],
    }
    for name, null in nulls.items():
        change = transition(scores.epoch(before), scores.epoch(after), null, k=30)
        sure = int((change.changes["q"] <= 0.1).sum())
        print(f"null {name}: {sure} of {len(data)} pairs change with a false discovery rate of 0.1")
    describe_gained(change, data)
    seen = training_dynamics(store)
    late = np.argsort(seen["first_learned"].values)[-3:]
    names = ", ".join(str(tuple(data.pairs[at].tolist())) for at in late)
    print(f"learned last of the train pairs: {names}")


def describe_gained(change: Transition, data: Pairs) -> None:
    """The pairs that gained most, and what sets them apart."""
    gained = change.gained["position"].values
    for at in gained[:5]:
        a, b = data.pairs[at].tolist()
        moved = float(change.changes["change"][at])
        print(f"  gained {moved:+.2f}: {a} + {b} = {int(data.sums[at])}")
    print("the 30 that gained most, against random draws of 30 (Holm's correction):")
    for one in compare_properties(modular_addition(MODULUS), data.pairs.tolist(), gained):
        print(f"  {one.name:10} {one.chosen:6.2f} of all {one.all:6.2f}, p = {one.corrected:.3f}")


if __name__ == "__main__":
    main()
