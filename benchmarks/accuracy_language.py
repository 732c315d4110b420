"""LDS of scores of small language models that Adam trained, from stores and from memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy_chart import draw_language
from accuracy_lines import Lines
from language_peers import PROJECTED, WHOLE
from language_references import Rows, references
from language_truth import RECIPES, Recipe, Truth, make_truth
from numpy.typing import NDArray
from torch.utils.data import TensorDataset

import trakstore as ts
from trakstore.attributors import unprojected_scores
from trakstore.evaluation.lds import LDS, lds, lds_difference
from trakstore.features import Job, featurize_job
from trakstore.scores.rank_correlation import centred_ranks, row_correlation

DRAWS, FEWER = 8, 4
SPREAD = 0.6745  # median of the absolute values of a standard normal distribution


def soft_thresholded(scores: Any) -> NDArray[np.float64]:
    """Move scores (target, train) towards 0 as ``soft_threshold="auto"`` does, by others too.

    A target has little to do with most documents, so that most of its scores are noise: the median of
    their absolute values tells the standard deviation of it, however large the few others are.
    """
    x = np.asarray(scores, dtype=np.float64)
    threshold = np.median(np.abs(x), axis=1, keepdims=True) / SPREAD
    return x - np.clip(x, -threshold, threshold)


class BothLines:
    """Lines of scores as they are, each with one of the same scores after a soft threshold."""

    def __init__(self, ground: LanguageGround) -> None:
        self.plain, self.soft = Lines(ground), Lines(ground)

    @property
    def found(self) -> list[dict[str, Any]]:
        return [*self.plain.found, *self.soft.found]

    def compare_anew(self) -> None:
        """Compare the lines that follow with the next one."""
        self.plain.default = self.soft.default = None

    def add(self, table: str, name: str, scores: Any, **more: Any) -> None:
        plain = self.plain.add(table, name, scores, **more)
        soft = self.soft.add(table, f"{name}, threshold", soft_thresholded(scores), **more)
        gain = lds_difference(soft, plain)
        self.soft.found[-1] |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
        print(f"{'':19}by the threshold {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]")


@dataclass
class LanguageGround:
    """One size of model with its truth, checkpoints and stores."""

    kind: str
    out: Path
    models: int
    repeats: int
    seed: int = 0

    @property
    def recipe(self) -> Recipe:
        return RECIPES[self.kind]

    @cached_property
    def truth(self) -> Truth:
        path = self.out / f"{self.kind}-{self.seed}.npz"
        return make_truth(self.recipe, path, self.models, self.repeats, self.seed)

    def judged(self, scores: Any) -> LDS:
        return lds(scores, self.truth.subsets, -self.truth.losses)

    @cached_property
    def data(self) -> dict[str, TensorDataset]:
        text = self.truth.text
        splits = {"train": text.train, "test": text.target}
        return {name: TensorDataset(torch.from_numpy(ids)) for name, ids in splits.items()}

    def store(
        self, dim: int, name: str = "", per_epoch: bool = False, **options: Any
    ) -> ts.FeatureStore:
        """Features of all checkpoints; made once."""
        place = self.out / f"{self.kind}-{self.seed}-{dim}{name}.zarr"
        spec = ts.ProjectionSpec("sjlt", dim=dim, per_epoch=per_epoch)
        featurize_job(
            self.job(**{"projector": spec, "sampled": 0} | options), place, progress=False
        )
        return ts.open_store(place)

    def best(self, dim: int, draws: int = DRAWS, dtype: str = "float32") -> ts.FeatureStore:
        """Features as they are best for a language model that Adam trained."""
        options: dict[str, Any] = {"per_epoch": True, "scale": "samples"}
        return self.store(dim, f"-own-{draws}-{dtype}", sampled=draws, dtype=dtype, **options)

    def job(self, **options: Any) -> Job:
        states = dict(self.truth.states)
        options = {"sampled": DRAWS, "output": "causal_lm", "batch_size": 128} | options
        return Job(self.recipe.model(), self.data, checkpoints=states, **options)

    def ceiling(self) -> tuple[float, float]:
        """Mean rank correlation of losses of two models of one half, and the LDS that it allows.

        Scores that knew the mean loss of models of each half would correlate with the mean of r of
        them as the root of their reliability (Spearman and Brown's formula).
        """
        first = self.truth.losses.reshape(-1, self.models, self.truth.losses.shape[1])
        if len(first) < 2:
            return float("nan"), float("nan")
        ranks = [centred_ranks(one.T.astype(np.float64)) for one in first[:2]]
        one = row_correlation(*ranks)
        many = len(first) * one / (1 + (len(first) - 1) * one)
        return float(one.mean()), float(np.sqrt(many.clip(0)).mean())


def bytes_of_row(store: ts.FeatureStore, checkpoints: int) -> int:
    """Stored bytes of one train document's features."""
    # Rows of 8 bits are read as float32: the store's own dtype is what takes room.
    width = store.split(store.epochs[0], "train").column("features").shape[1]
    return checkpoints * width * np.dtype(store.spec.dtype).itemsize


def from_stores(ground: LanguageGround, lines: BothLines, small: bool, last: int = 0) -> None:
    """Scores of the library from the last checkpoints of one training, or from all of them (0)."""
    moments = ground.truth.moments[max(ground.truth.moments)]
    for dim in (64,) if small else (2048, 8192):
        lines.compare_anew()
        plain = ground.store(dim)
        own_plain = ground.store(dim, "-own-plain", per_epoch=True)
        of_samples = ground.store(dim, "-samples", scale="samples", sampled=FEWER)
        fewer = ground.best(dim, FEWER)
        own = ground.best(dim)
        of_adam = ground.store(dim, "-adam", scale=moments)
        used = list(plain.epochs)[-last:]
        of: Any = {"epochs": used}
        scores = {
            "trak_scores, one projection": ts.trak_scores(plain, **of),
            "trak_scores": ts.trak_scores(own_plain, **of),
            f"trak_scores, scale, {FEWER} draws": ts.trak_scores(fewer, **of),
            f"trak_scores, scale, {DRAWS} draws": ts.trak_scores(own, **of),
            f"influence_scores, scale, {DRAWS} draws": ts.influence_scores(own, **of),
            "influence_scores": ts.influence_scores(plain, **of),
            "grad_dot_scores": ts.grad_dot_scores(plain, **of),
            "grad_cos_scores": ts.grad_cos_scores(plain, **of),
            "trak_scores, scale of Adam": ts.trak_scores(of_adam, **of),
            "trak_scores, scale": ts.trak_scores(of_samples, kernel="train", **of),
            "grad_dot_scores, scale": ts.grad_dot_scores(of_samples, **of),
        }
        name = f"trak_scores, scale, {FEWER} draws, one projection"
        scores[name] = ts.trak_scores(of_samples, kernel="sampled", **of)
        for c in (0.03, 0.3, 1.0):
            name = f"trak_scores, scale, {DRAWS} draws, c = {c}"
            scores[name] = ts.trak_scores(own, damping=c, **of)
        size = bytes_of_row(plain, len(used))
        for name, one in scores.items():
            lines.add(f"{dim} x {len(used)}", name, one, bytes=size, checkpoints=len(used))


def from_the_last(ground: LanguageGround, lines: BothLines, small: bool) -> None:
    """Scores of the library from the last checkpoint alone."""
    from_stores(ground, lines, small, last=1)


def in_eight_bits(ground: LanguageGround, lines: BothLines, small: bool) -> None:
    """Scores of all checkpoints from rows of 8 bits: more numbers in the same bytes."""
    for dim in (64,) if small else (8192, 16384):
        store = ground.best(dim, dtype="int8")
        size, count = bytes_of_row(store, len(store.epochs)), len(store.epochs)
        for c in (0.1, 0.03):
            name = f"trak_scores, scale, {DRAWS} draws, 8 bits" + f", c = {c}" * (c != 0.1)
            one = ts.trak_scores(store, damping=c)
            lines.add(f"{dim} x {count}", name, one, bytes=size, checkpoints=count)


def by_others(ground: LanguageGround, lines: BothLines, small: bool) -> None:
    """Scores by other libraries, where they can be imported, and ours of whole gradients by a store."""
    states, make = list(ground.truth.states.values()), ground.recipe.model
    # Dense signs of more numbers take a minute for each batch on one core.
    dim = 64 if small else 2048
    for name, score in {**PROJECTED, **WHOLE}.items():
        try:
            found = score(make, states, ground.truth.text, dim)
        except ImportError as error:
            print(f"{name} is passed over: {error}")
            continue
        size = (
            {"bytes": 4 * dim * len(states), "checkpoints": len(states)}
            if name in PROJECTED
            else {}
        )
        lines.add("peers", name, found, **size)
    store = ground.best(dim)
    for steps in (0, 2):
        found = unprojected_scores(ground.job(), store, damping=0.03, iterations=steps)
        lines.add("whole", f"unprojected_scores, {steps} iterations, {dim} numbers stored", found)


def in_memory(ground: LanguageGround, lines: BothLines, small: bool) -> None:
    """Scores of whole gradients, beside the library's: means over checkpoints, and of each alone."""
    dim = 64 if small else 8192
    ours = ts.trak_scores(ground.best(dim))
    lines.add("whole", f"trak_scores, scale, {DRAWS} draws, {dim} numbers stored", ours)
    text, made = ground.truth.text, []
    train, target = torch.from_numpy(text.train), torch.from_numpy(text.target)
    for number, state in enumerate(ground.truth.states.values()):
        model = ground.recipe.model()
        model.load_state_dict(state)
        rows = Rows.compute(model, train, target, 2 if small else FEWER, seed=ground.seed + number)
        made.append(references(rows))
    for name in made[0]:
        scores: list[NDArray[np.float64]] = [one[name] for one in made]
        lines.add(f"dense x {len(made)}", name, np.mean(scores, axis=0))
        for epoch, one in zip(ground.truth.states, scores, strict=True):
            lines.plain.add(f"dense, {epoch}", name, one)


# What is told of a model, by the name that chooses it.
PARTS: dict[str, Callable[[LanguageGround, BothLines, bool], None]] = {
    "stores": from_stores,
    "last": from_the_last,
    "bits": in_eight_bits,
    "peers": by_others,
    "memory": in_memory,
}


def language(
    out: Path, models: int, repeats: int, seed: int, parts: Sequence[str], small: bool
) -> None:
    """Write the lines of both sizes of language model; those of parts left out stay as they were."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "lm.json"
    found: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    for kind in ("tiny",) if small else ("small", "large"):
        ground = LanguageGround(kind, out, models, repeats, seed)
        alone, attainable = ground.ceiling()
        print(f"{kind}: {len(ground.truth.subsets)} models; losses of two models of one half "
              f"correlate by {alone:.3f}, which allows an LDS of {attainable:.3f}")  # fmt: skip
        for part in parts:
            lines = BothLines(ground)
            PARTS[part](ground, lines, small)
            found = [one for one in found if (one["model"], one.get("part")) != (kind, part)]
            found += [one | {"part": part} for one in lines.found]
            path.write_text(json.dumps(found, indent=1))
    draw_language(found, out / "language.svg")
