"""Which settings tell best what training on other data would have given: LDS on retrained models.

    python benchmarks/accuracy.py [mlp] [cnn] [few] [--out accuracy] [--models 750] [--small]
    python benchmarks/accuracy.py lm [--out accuracy] [--models 160] [--repeats 2] [--seed 0]
        [--parts stores last bits peers memory] [--small]

Digits of scikit-learn, 1,297 to train on and 500 to ask about. The truth is the margin of models that
were trained on random halves: ``mlp`` (26,122 parameters) and ``cnn`` (13,706) on all train rows, and
``few``, the MLP on 400 of them. Models are trained in two processes and kept under --out: a run that is
stopped goes on. Scores are made from models trained on all rows, by one setting changed at a time from
the default: SJLT to 1,024 dimensions, five models of other seeds, damping c = 1 of λ = c·tr(K)/n,
temperature 2. Each line has its mean over targets with a 95% interval, which resamples targets and
subsets, and the difference from the default with a paired interval; while models are trained, their
rate is told. traker and dattri run where they can be imported. Lines go to --out/lines.json, and a
picture beside it. About half an hour on two cores.

``lm`` is for two decoders (116,544 and 229,952 parameters) that Adam trained on 768 documents of 48
tokens, cut from functions of this Python's standard library; 128 others are asked about. The truth is
the mean loss of models that were retrained on halves, all from the same weights, each half twice in
another order, by which it is told what scores can reach at most. Scores are made from four checkpoints
of one training: by the library from stores, of four and of one byte a number, by other libraries, and
in memory from whole gradients (their products, kernels of their own and of sampled tokens, scaled or
not, and EK-FAC, which take 8 GB for the larger decoder). Lines go to --out/lm.json, where those of
--parts that are left out stay. The truth and the stores are kept under --out and used again. With
--repeats 1 each half is taken once. Another seed takes other modules, halves and weights. To train one
model takes 3 and 7 seconds of one core: about half an hour on two, for all.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy_chart import draw
from accuracy_language import PARTS, language
from accuracy_lines import Lines
from accuracy_peers import PEERS, dattri_lds
from accuracy_variants import VARIANTS, Parts
from distributed import Client, LocalCluster
from torch import nn
from torch.utils.data import TensorDataset

import trakstore as ts
from trakstore.cli.demo import load_images
from trakstore.evaluation.lds import LDS, lds
from trakstore.evaluation.retraining import retrain
from trakstore.evaluation.training import SubsetTrainer
from trakstore.features import Job, featurize_job
from trakstore.progress import ProgressLine
from trakstore.sampling import SubsetPlan, sample_rows

DIM, USED, MOST, REPEATS = 1024, 5, 10, 3
EPOCHS = 15


def mlp() -> nn.Module:
    layers = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(128, 10))


def cnn() -> nn.Module:
    first = [nn.Unflatten(1, (1, 8)), nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU()]
    second = [nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*first, *second, nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


Kinds = dict[str, tuple[Callable[[], nn.Module], int]]
MODELS: Kinds = {"mlp": (mlp, 1297), "cnn": (cnn, 1297), "few": (mlp, 400)}


class Ground:
    """One model with its data, truth, checkpoints and stores."""

    def __init__(self, kind: str, out: Path, models: int, small: bool) -> None:
        self.kind, self.out, self.models = kind, out / kind, models
        self.make, rows = MODELS[kind]
        images = load_images()
        rows, targets = (60, 20) if small else (rows, 500)
        flat = (lambda x: x) if kind == "cnn" else (lambda x: x.reshape(-1, 64))
        self.data = {
            split: TensorDataset(
                torch.from_numpy(flat(images[split].images[:count]).copy()),
                torch.from_numpy(images[split].labels[:count]),
            )
            for split, count in (("train", rows), ("test", targets))
        }
        self.rows, self.epochs = rows, range(2 if small else MOST)
        self.trainer = self.trainer_of(2 if small else EPOCHS)

    def trainer_of(self, epochs: int) -> SubsetTrainer:
        return SubsetTrainer(
            self.make,
            self.data["train"],
            self.data["test"],
            epochs=epochs,
            optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        )

    @cached_property
    def truth(self) -> Any:
        plan = SubsetPlan(self.rows, repeats=REPEATS, seed=1)
        line = ProgressLine("training", self.models, unit="models")
        what = (self.trainer, self.out / "truth.zarr", "halves", plan, self.models)
        with (
            LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as two,
            Client(two),
            line,
        ):
            return retrain(*what, finished=line.advance)

    @cached_property
    def weights(self) -> dict[int | str, dict[str, torch.Tensor]]:
        """Models of all rows, by number."""
        everything = np.ones((len(self.epochs), self.rows), dtype=bool)
        return dict(enumerate(self.trainer.fit(everything, np.array(self.epochs))))

    def one_training(self) -> ts.FeatureStore:
        """Checkpoints of the first model's training; trained anew, each from the same seed."""
        everything, seed = np.ones((1, self.rows), dtype=bool), np.zeros(1, dtype=np.int64)
        ends = sorted({max(1, self.trainer.epochs * part // 8) for part in (1, 2, 4, 8)})
        weights = {end: self.trainer_of(end).fit(everything, seed)[0] for end in ends}
        job = Job(self.make(), self.data, checkpoints=weights, projector=sjlt(), batch_size=500)
        featurize_job(job, self.out / "one.zarr", progress=False)
        return ts.open_store(self.out / "one.zarr")

    def store(
        self, spec: ts.ProjectionSpec, name: str = "", count: int = USED, **options: Any
    ) -> ts.FeatureStore:
        """Features of the first checkpoints; made once."""
        shown = f"{spec.kind}-{spec.dim}-{spec.seed}-{spec.s}-{spec.side}{name}"
        place = self.out / f"{shown}.zarr"
        options |= {"projector": spec, "batch_size": 500}
        job = Job(self.make(), self.data, checkpoints=self.weights, **options)
        featurize_job(job, place, epochs=list(self.epochs)[:count], progress=False)
        return ts.open_store(place)

    def judged(self, scores: Any) -> LDS:
        subsets, outputs = self.truth["subset"].values, self.truth["output"].values
        return lds(scores, subsets, outputs)


def sjlt(dim: int = DIM, **options: Any) -> ts.ProjectionSpec:
    return ts.ProjectionSpec("sjlt", dim=dim, **options)


def settings(ground: Ground, lines: Lines, small: bool) -> None:
    """One setting of the library after the other."""
    used = list(ground.epochs)[:USED]
    base = ground.store(sjlt(), count=MOST)
    trak = partial(ts.trak_scores, epochs=used)
    lines.add("default", f"sjlt {DIM}, {len(used)} models, c = 1, temperature 2", trak(base))
    for heat in (None, 1, 1.5, 3, 4, 6):
        name = "none: the paper's formula" if heat is None else f"{heat}"
        lines.add("temperature", name, trak(base, temperature=heat))
    for dim in (64,) if small else (64, 128, 256, 512, 2048, 4096):
        lines.add("dim", f"{dim}", trak(ground.store(sjlt(dim))))
    for spec in projectors(small):
        name = f"{spec.kind}{f' s = {spec.s}' if spec.s else ''}"
        lines.add("projector", name, trak(ground.store(spec)))
    for count in (1, 2) if small else (1, 3, 10):
        lines.add("checkpoints", f"{count}", ts.trak_scores(base, epochs=list(range(count))))
    for dim in (DIM,) if small else (256, DIM, 4096):
        place, share = ground.store(sjlt(dim)), dim / ground.rows
        for c, heat in itertools.product((0.01, 0.1, 0.3, 1, 3, 10, 30, 100), (2, None)):
            formula = "" if heat else ", paper's formula"
            lines.add("damping", f"dim {dim}, {c} tr(K)/n = {c * share:.3g} tr(K)/k{formula}",
                      trak(place, damping=c, temperature=heat))  # fmt: skip
    for name, options in {"float16": {"dtype": "float16"}, "7 bits": {"keep_bits": 7}}.items():
        lines.add("stored as", name, trak(ground.store(sjlt(), f"-{name[:2]}", **options)))
    drawn = ground.store(sjlt(), "-drawn", sampled=4)
    for c in (0.1, 0.3, 1, 3):
        lines.add("labels", f"drawn, c = {c}", trak(drawn, kernel="sampled", damping=c))
    lines.add("scale", "of samples", trak(ground.store(sjlt(), "-scale", scale="samples")))
    own = ground.store(sjlt(per_epoch=True), "-own")
    lines.add("projector", "another for each model", trak(own))
    layers = [name for name, _ in ground.make().named_children() if name.isdigit()]
    for count in (1, 2):
        last = [f"{name}.*" for name in layers if hasattr(ground.make()[int(name)], "weight")]
        place = ground.store(sjlt(), f"-last{count}", parameters=last[-count:])
        lines.add("layers", f"last {count}", trak(place))
    one_training(ground, lines)
    methods(ground, lines, base, used)


def one_training(ground: Ground, lines: Lines) -> None:
    """Several checkpoints of one training instead of several trainings."""
    store = ground.one_training()
    for epochs in (list(store.epochs), list(store.epochs)[-2:]):
        trak = partial(ts.trak_scores, store, epochs=epochs)
        name = f"after {', '.join(map(str, epochs))} epochs"
        lines.add("one training", name, trak())
        lines.add("one training", f"{name}, Q averaged apart", trak(average="factors"))
        lines.add("one training", f"{name}, the paper's formula", trak(temperature=None))


def projectors(small: bool) -> list[ts.ProjectionSpec]:
    kinds = [sjlt(s=2), sjlt(s=4), sjlt(s=8)]
    if small:
        return kinds[:1]
    kinds += [ts.ProjectionSpec(kind, dim=DIM) for kind in ("rademacher", "gaussian", "kronecker")]
    return [*kinds, ts.ProjectionSpec("identity")]


def methods(ground: Ground, lines: Lines, base: ts.FeatureStore, used: Sequence[int]) -> None:
    of = {"epochs": list(used)}
    found = {
        "TRAK, Q averaged apart": ts.trak_scores(base, average="factors", **of),
        "influence, Gauss-Newton": ts.influence_scores(base, **of),
        "influence, of loss gradients": ts.influence_scores(base, hessian="loss", **of),
        "GradDot (TracIn at one rate)": ts.grad_dot_scores(base, **of),
        "GradCos": ts.grad_cos_scores(base, **of),
        "whitened cosine": ts.whitened_cos_scores(base, **of),
        "whitened cosine, half of targets": ts.whitened_cos_scores(base, mix=0.5, **of),
    }
    for name, one in found.items():
        lines.add("method", name, one)
    for share in (0.5, 0.1):
        rows = sample_rows(ground.rows, share, strata=ground.data["train"].tensors[1].numpy())
        scores = np.zeros((len(ground.data["test"]), ground.rows), dtype=np.float32)
        scores[:, rows.positions] = ts.trak_scores(base, **of).isel(train=rows.positions)
        lines.add("sampled", f"{share:.0%} of train rows scored, the others 0", scores)
    scores = np.asarray(ts.trak_scores(base, **of))
    for kept in (0.5, 0.1, 0.03):
        edge = float(np.quantile(np.abs(scores), 1 - kept))
        soft = ts.trak_scores(base, soft_threshold=edge, **of)
        lines.add("soft", f"threshold that leaves {kept:.0%} of scores", soft)


def same_bytes(ground: Ground, lines: Lines) -> None:
    """What else can be done with as many stored numbers as the default has."""
    numbers, most = DIM * USED, len(ground.epochs)
    for count in (1, 2, 5, 10):
        if count <= most:
            place = ground.store(sjlt(numbers // count), count=count)
            lines.add("same bytes", f"{count} models of {numbers // count}",
                      ts.trak_scores(place, epochs=list(range(count))))  # fmt: skip
    used = list(ground.epochs)[:USED]
    halves = [ground.store(sjlt(DIM // 2, seed=seed)) for seed in (0, 1)]
    means = [np.asarray(ts.trak_scores(one, epochs=used)) for one in halves]
    lines.add("same bytes", f"two seeds of {DIM // 2}", (means[0] + means[1]) / 2)
    parts = Parts.read(ground.store(sjlt()), used)
    for name, variant in VARIANTS.items():
        lines.add("variant", name, variant(parts))
    layers = {name.rpartition(".")[0] for name, _ in ground.make().named_parameters()}
    each = DIM // len(layers)
    places = [
        ground.store(sjlt(each), f"-layer{layer}", parameters=(f"{layer}.*",))
        for layer in sorted(layers)
    ]
    total = sum(np.asarray(ts.trak_scores(one, epochs=used)) for one in places)
    lines.add("variant", f"a kernel for each layer, {each} each", total)


def peers(ground: Ground, lines: Lines, small: bool) -> None:
    used = list(ground.epochs)[:USED]
    weights = [ground.weights[epoch] for epoch in used]
    for dim in (64,) if small else (256, DIM):
        own = partial(ts.trak_scores, ground.store(sjlt(dim)), epochs=used)
        lines.add("peers", f"trakstore, {dim}", own())
        lines.add("peers", f"trakstore, {dim}, the paper's formula", own(temperature=None))
        lines.add(
            "peers", f"trakstore, {dim}, the same, c = 0.001", own(damping=0.001, temperature=None)
        )
        for name, score in PEERS.items():
            try:
                found = score(ground.make, weights, ground.data, dim)
            except ImportError as error:
                print(f"{name} is passed over: {error}")
                continue
            lines.add("peers", f"{name}, {dim}", found)
    scores = np.asarray(ts.trak_scores(ground.store(sjlt()), epochs=used))
    same_metric(ground, scores)


def same_metric(ground: Ground, scores: np.ndarray[Any, Any]) -> None:
    """Our LDS of one model a subset beside dattri's."""
    first = slice(None, None, REPEATS)
    subsets, outputs = (ground.truth[name].values[first] for name in ("subset", "output"))
    try:
        theirs = dattri_lds(scores, subsets, outputs)
    except ImportError as error:
        print(f"dattri's LDS is passed over: {error}")
        return
    print(f"{ground.kind} one model a subset: LDS {lds(scores, subsets, outputs).mean:.6f}, "
          f"by dattri's metric {theirs:.6f}")  # fmt: skip


def digits(options: argparse.Namespace) -> None:
    """Write the lines of models of digits, and the picture."""
    found: list[dict[str, Any]] = []
    for kind in [kind for kind in options.kinds if kind in MODELS] or MODELS:
        ground = Ground(kind, options.out, options.models or 250 * REPEATS, options.small)
        lines = Lines(ground)
        settings(ground, lines, options.small)
        same_bytes(ground, lines)
        peers(ground, lines, options.small)
        found += lines.found
        (options.out / "lines.json").write_text(json.dumps(found, indent=1))
    default = {"dim": DIM, "checkpoints": USED, "damping": 1.0}
    draw(found, default, options.out / "accuracy.svg")


def main() -> None:
    """All lines of the models that are named."""
    named = [*MODELS, "lm"]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="MODEL", help=", ".join(named))
    parser.add_argument("--out", type=Path, default=Path("accuracy"))
    parser.add_argument("--models", type=int, help="trained on halves")
    parser.add_argument("--seed", type=int, default=0, help="of the language models' text")
    told = "what is told of language models"
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help=told)
    parser.add_argument("--repeats", type=int, default=2, help="of each half of a text")
    parser.add_argument("--small", action="store_true", help="a few lines of little training")
    options = parser.parse_args()
    if unknown := set(options.kinds) - set(named):
        parser.error(f"no model {unknown.pop()!r}; there are {', '.join(named)}")
    torch.set_num_threads(1)  # the models are small
    if options.kinds != ["lm"]:
        digits(options)
    if "lm" in options.kinds:
        language(
            options.out,
            options.models or 160,
            options.repeats,
            options.seed,
            options.parts,
            options.small,
        )


if __name__ == "__main__":
    main()
