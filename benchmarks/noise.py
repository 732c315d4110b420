"""Wrong labels that were planted in digits: how well self-scores find them.

    python benchmarks/noise.py [mlp] [cnn] [--share 0.1] [--models 5] [--small]

A share of the labels of 1,297 images is changed to another class. Models are trained on them, anew for
each number of epochs; each image's self-score, loss and gradient norm rank the images, averaged over
models. Each line has the area under the ROC curve with a 95% interval, and
the share of wrong labels among as many first images. About two minutes on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy import MODELS
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

import trakstore as ts
from trakstore.cli.demo import load_images
from trakstore.evaluation.training import SubsetTrainer
from trakstore.evaluation.wrong_labels import detection, plant_noise
from trakstore.features import Job, featurize_job


def noisy_digits(kind: str, share: float, rows: int) -> tuple[TensorDataset, NDArray[np.bool_]]:
    images = load_images()["train"]
    labels, wrong = plant_noise(images.labels[:rows], share)
    pixels = images.images[:rows] if kind == "cnn" else images.images[:rows].reshape(-1, 64)
    return TensorDataset(torch.from_numpy(pixels.copy()), torch.from_numpy(labels)), wrong


def stored(
    kind: str, data: TensorDataset, epochs: int, models: int, place: Path
) -> ts.FeatureStore:
    """Features of models that were trained for so many epochs."""
    optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    trainer = SubsetTrainer(MODELS[kind][0], data, data, epochs=epochs, optimizer=optimizer)
    everything = np.ones((models, len(data)), dtype=bool)
    weights = dict(enumerate(trainer.fit(everything, np.arange(models))))
    job = Job(MODELS[kind][0](), {"train": data}, projector=ts.ProjectionSpec("sjlt", dim=1024))
    featurize_job(replace(job, checkpoints=weights, batch_size=500), place, progress=False)
    return ts.open_store(place)


def ranked(store: ts.FeatureStore) -> dict[str, NDArray[Any]]:
    """What ranks the images, the likeliest wrong first."""
    splits = [store.split(epoch, "train") for epoch in store.epochs]

    def mean(name: str) -> NDArray[Any]:
        return np.asarray(np.mean([one.column(name).read(0, one.rows) for one in splits], axis=0))

    return {"self-score": ts.self_scores(store).values, "loss": mean("loss"), "norm": mean("norm")}


def main() -> None:
    """Print a line for each model, number of epochs and ranking."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="MODEL", default=["mlp", "cnn"])
    parser.add_argument("--share", type=float, default=0.1, help="of labels that are wrong")
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="few images and epochs")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the models are small
    for kind in options.kinds:
        data, wrong = noisy_digits(kind, options.share, 200 if options.small else 1297)
        for epochs in (1, 2) if options.small else (3, 5, 15, 50):
            with tempfile.TemporaryDirectory() as folder:
                store = stored(kind, data, epochs, options.models, Path(folder) / "s.zarr")
                for name, values in ranked(store).items():
                    one = detection(values, wrong)
                    print(
                        f"{kind}, {epochs} epochs, {name}: AUC {one.auc:.3f} "
                        f"[{one.low:.3f}, {one.high:.3f}], {one.precision:.0%} of the first "
                        f"{one.found} are wrong",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
