"""What tracking samples costs while a model trains: the network of examples/grokking.py.

    python benchmarks/tracker.py [--small]

Full-batch steps on 480 pairs with and without a tracker, in alternating rounds of one process; every
20th step is tracked, as in the example, and once every step, which is more than anybody needs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from grokking import Adder, Pairs

from trakstore.attributors import TrainingDynamicsTracker


def train(steps: int, every: int) -> float:
    """Seconds of some steps, tracked every so many-th of them; never for 0."""
    torch.manual_seed(0)
    data, model = Pairs(torch.randperm(961)[:480]), Adder()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1.0)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        with TrainingDynamicsTracker(data, 50, f"{folder}/d.zarr") as tracker:
            for step in range(1, steps + 1):
                logits = model(data.pairs)
                losses = F.cross_entropy(logits, data.sums, reduction="none")
                optimiser.zero_grad()
                losses.mean().backward()
                optimiser.step()
                if every and step % every == 0:
                    tracker.update(step, 0, None, data.sums, logits, losses, ids=range(480))
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--small", action="store_true", help="a few seconds")
    o = parser.parse_args()
    torch.set_num_threads(1)
    steps, rounds = (60, 1) if o.small else (2000, 7)
    train(60, 20)
    seconds: dict[int, list[float]] = {0: [], 20: [], 1: []}
    for _ in range(rounds):
        for every, taken in seconds.items():
            taken.append(train(steps, every))
    plain = statistics.median(seconds[0])
    print(f"{steps} steps in {plain:.2f} s without a tracker")
    for every in (20, 1):
        extra = (
            statistics.median(b / a for a, b in zip(seconds[0], seconds[every], strict=True)) - 1
        )
        print(f"tracked every {every} steps: {extra:+.1%}")


if __name__ == "__main__":
    main()
