"""``trakstore demo``: the whole way on handwritten digits, and the job that it runs."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from typer import Option

from trakstore.cli.options import Json
from trakstore.cli.output import console, only_json, print_json
from trakstore.cli.program import program_words
from trakstore.cli.walkthrough import Images, ask
from trakstore.errors import LocationError
from trakstore.paths import exists, is_folder
from trakstore.report.extras import need_extra
from trakstore.report.terminal_tables import kernel_table
from trakstore.spec import ProjectionSpec
from trakstore.storage.opening import open_store

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trakstore.features import Job

EPOCHS = (2, 5, 15)  # the weights after these are kept
TEST_ROWS = 500
BATCH, LEARNING_RATE, MOMENTUM, SEED = 64, 0.05, 0.9, 0
_DIGITS = "datasets/data/digits.csv.gz"  # in the folder of scikit-learn


def load_images() -> dict[str, Images]:
    """Load handwritten digits of 8 x 8 pixels, 1,297 to train on and 500 to ask about.

    Raises
    ------
    TrakStoreError
        When scikit-learn is not installed.
    """
    table = _digits_table()
    images = (table[:, :-1].reshape(-1, 8, 8) / 16).astype(np.float32)
    labels = table[:, -1].astype(int)
    order = np.random.default_rng(SEED).permutation(len(images))
    rows = {"train": np.sort(order[TEST_ROWS:]), "test": np.sort(order[:TEST_ROWS])}
    return {split: Images(images[ids], labels[ids], ids) for split, ids in rows.items()}


def _digits_table() -> NDArray[np.float64]:
    """Read the digits of scikit-learn: each row has 64 pixels from 0 to 16, then the class."""
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        need_extra("the demo", "demo", "sklearn")
    else:
        # Importing scikit-learn takes longer than training on its digits: the file is read directly.
        with suppress(FileNotFoundError):
            return np.loadtxt(Path(found.origin).parent / _DIGITS, delimiter=",")
    from sklearn.datasets import load_digits

    return np.column_stack(load_digits(return_X_y=True))


def digits() -> Job:
    """Make the demo's job: a small convolutional network, trained in seconds, kept at three epochs.

    Every process that calls this on one kind of machine trains to the same bits.
    """
    import torch
    from torch.utils.data import TensorDataset

    from trakstore.features import Job

    data = load_images()
    datasets = {
        split: TensorDataset(torch.from_numpy(one.images)[:, None], torch.from_numpy(one.labels))
        for split, one in data.items()
    }
    with _reproducible():
        model = _network()
        checkpoints = _train(model, *datasets["train"].tensors)
    return Job(
        model=model,
        datasets=datasets,
        output="margin",
        projector=ProjectionSpec("sjlt", dim=512),
        checkpoints=checkpoints,
        batch_size=2 * BATCH,
        ids={split: one.ids.tolist() for split, one in data.items()},
        learning_rates=dict.fromkeys(EPOCHS, LEARNING_RATE),
    )


def demo(
    out: Annotated[
        Path, Option(metavar="DIR", help="A new folder, or that of an earlier demo.")
    ] = Path("trakstore-demo"),
    as_json: Json = False,
) -> None:
    """Train on digits, store features, and draw what helped and what harmed: under a minute.

    Needs scikit-learn and matplotlib, the "demo" extra.
    """
    began, say, out = time.monotonic(), console(stderr=as_json), out.resolve()
    need_extra("the demo", "demo", "matplotlib", "sklearn")
    _check_folder(out)
    with only_json(as_json):
        document = _walk(out, say)
    seconds = round(time.monotonic() - began, 1)
    if as_json:
        print_json({**document, "seconds": seconds})
        return
    say.print()
    say.print(f"done in {seconds:.0f} s")
    say.print(f"  picture  {document['picture']}")
    say.print(f"  store    {document['store']}")
    say.print("next, without the model:")
    where, program = shlex.quote(str(out / "store.zarr")), program_words()
    for line in (
        "info {}",
        "report {} --job trakstore.cli.demo:digits --out report.html",
        "topk {} --k 5 --target @0",
        "kernel {}",
        "score {} --save test-on-train",
    ):
        say.print(f"  {program} {line.format(where)}")


def _walk(out: Path, say: Console) -> dict[str, Any]:
    from trakstore.features import featurize_job
    from trakstore.features.predictions import predicted_classes
    from trakstore.methods.kernel_report import kernel_report

    data, place = load_images(), out / "store.zarr"
    say.print(f"1  training a small network on {len(data['train'].ids):,} digits")
    job = digits()
    predicted = np.asarray(predicted_classes(job, max(EPOCHS), "test", np.arange(TEST_ROWS)))
    accuracy = float((predicted == data["test"].labels).mean())
    say.print(
        f"   kept epochs {', '.join(map(str, EPOCHS))}; it reads {accuracy:.1%} of test right"
    )
    say.print("2  per-sample gradients of train and test at each epoch, projected")
    done = featurize_job(job, place, rank=0, world_size=1)
    say.print(
        f"   wrote {done.rows:,} rows in {done.seconds:.1f} s" if done.rows else "   all there"
    )
    store = open_store(place)
    say.print("3  the kernels of the train features")
    reports = [kernel_report(store, epoch, "train") for epoch in store.epochs]
    say.print(kernel_table(reports))
    say.print("4  TRAK over all epochs: which train digits helped or harmed each test digit")
    answers = ask(store, data["train"], data["test"], predicted)
    say.print(answers.table())
    share = answers.same_class
    say.print(
        f"   own class: {share['most_helpful']:.0%} of the 10 most helpful, "
        f"{share['most_harmful']:.0%} of the 10 most harmful, {share['base_rate']:.0%} at random",
        soft_wrap=True,
    )
    return {
        "store": str(store.location),
        "picture": str(answers.draw(out / "digits.png")),
        "epochs": list(store.epochs),
        "test_accuracy": accuracy,
        "rows_written": done.rows,
        "kernels": [{**r.to_dict(), "eigenvalues": None} for r in reports],
        "same_class": share,
        "targets": answers.documents(),
    }


def _check_folder(out: Path) -> None:
    """Refuse a folder with anything other than an earlier demo."""
    if exists(out) and not is_folder(out):
        raise LocationError(f"{out} is a file; give a folder with --out")
    names = sorted(one.name for one in out.iterdir()) if exists(out) else []
    if names and "store.zarr" not in names:
        raise LocationError(
            f"{out} is not empty and is not of an earlier demo (it has {names[0]!r}); "
            f"give an empty or new folder with --out"
        )


@contextmanager
def _reproducible() -> Iterator[None]:
    """Let torch use one thread and a seeded generator for the block; both are put back."""
    import torch

    # The rounding of sums depends on the number of threads: with one, all machines of a kind agree.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(SEED)
            yield
    finally:
        torch.set_num_threads(threads)


def _network() -> nn.Module:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


def _train(model: nn.Module, images: Tensor, labels: Tensor) -> dict[int | str, dict[str, Tensor]]:
    """Train by SGD with momentum; return the weights after some of the epochs."""
    import torch

    # These are, to the bit, the steps of torch.optim.SGD, whose first step imports torch's whole
    # compiler, which takes longer than the training.
    weights = [*model.parameters()]
    velocities = [torch.zeros_like(one) for one in weights]
    kept: dict[int | str, dict[str, Tensor]] = {}
    for epoch in range(1, max(EPOCHS) + 1):
        for rows in torch.randperm(len(images)).split(BATCH):
            loss = torch.nn.functional.cross_entropy(model(images[rows]), labels[rows])
            gradients = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for weight, velocity, gradient in zip(weights, velocities, gradients, strict=True):
                    weight.sub_(velocity.mul_(MOMENTUM).add_(gradient), alpha=LEARNING_RATE)
        if epoch in EPOCHS:
            kept[epoch] = {name: one.clone() for name, one in model.state_dict().items()}
    return kept
