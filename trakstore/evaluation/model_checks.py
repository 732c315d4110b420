"""Checks of a job: its model and data must give the same numbers whenever they are evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as tree
from torch.utils.data import Subset

from trakstore.errors import TrakStoreError
from trakstore.evaluation.verdicts import Check, pass_if
from trakstore.features.batches import Batches
from trakstore.features.blockcheck import features_alone
from trakstore.features.evaluated import evaluated
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.fingerprint import dataset_fingerprint, dataset_rows, hashed_rows
from trakstore.features.job import Job
from trakstore.features.outputs import as_output
from trakstore.features.parameters import canonical_name, parameter_spec, select_parameters
from trakstore.features.projectors import make_projector
from trakstore.features.scale_choice import stored_scale
from trakstore.features.split_samples import SplitSamples
from trakstore.features.token_samples import TokenSamples
from trakstore.spec import ProjectionSpec, StoreSpec
from trakstore.storage.columns import sample_ids
from trakstore.storage.split import Split

SAMPLES = 8  # samples on which the model is evaluated
SAME = 1e-3  # relative difference that rounding in float32 explains
_TINY = torch.finfo(torch.float64).tiny
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Probe:
    """Some samples of a job, as one batch, and its model, in eval mode."""

    job: Job
    batch: Any

    @classmethod
    def of(cls, job: Job, split: str, rows: list[int] | None = None) -> Probe:
        """Take the samples at some rows, or spaced ones."""
        dataset = job.datasets[split]
        count = dataset_rows(dataset)
        if rows is None:
            rows = np.unique(np.linspace(0, count - 1, SAMPLES).astype(int)).tolist()
        return cls(job, _read(job, dataset, rows))

    @property
    def size(self) -> int:
        return len(tree.tree_leaves(self.batch)[0])

    def outputs(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Compute outputs of some of the samples in one batch; float64."""
        cut = tree.tree_map(lambda leaf: leaf[start:stop], self.batch)
        with torch.no_grad():
            return as_output(self.job.output)(self.job.model, cut).output.double()

    def features(self, spec: ProjectionSpec, *, generic: bool = False) -> Tensor:
        """Compute features of the samples, layer by layer or by the generic engine; float64."""
        # Two ways to the same numbers: layer by layer with hooks, and torch.func on the whole model.
        engine = self._engine(spec)
        rows = engine.generic_rows if generic else engine.rows
        return rows(self.batch).features.double()

    def _engine(self, spec: ProjectionSpec) -> FactorisedEngine:
        return _engine(self.job, spec)


def features_as_stored(
    job: Job, samples: SplitSamples | TokenSamples, rows: list[int], split: Split, spec: StoreSpec
) -> Tensor:
    """Compute what a split of this epoch holds of some rows, by an ordinary pass of each sample.

    Each is read by itself: padding beside others may change what the model computes.

    Parameters
    ----------
    job : Job
        Its model is in eval mode and has the weights of the epoch.
    samples : SplitSamples or TokenSamples
        Samples of the split's rows: of tokens, or with labels drawn from the model once more.
    rows : list of int
    split : Split
    spec : StoreSpec

    Returns
    -------
    Tensor, shape (len(rows), dim), float32
    """
    engine = _engine(job, spec.projection.at(split.epoch))
    projector, scale = engine.projector, stored_scale(split.location, spec)
    own = projector if scale is None else scale.scaled(projector)
    output = as_output(job.output)
    labels = samples.labels(job.model, output)
    batches = Batches.of(job.model, output, samples.dataset, _CPU, job.collate)
    features = []
    for row in rows:
        one = batches.read(row, row + 1)
        one = one if labels is None else labels.labelled(np.array([row]), one)
        features.append(features_alone(engine.samples(one), own))
    return torch.cat(features)


def _engine(job: Job, spec: ProjectionSpec) -> FactorisedEngine:
    selected = select_parameters(job.model, job.parameters)
    projector = make_projector(spec, parameter_spec(selected, job.parameters))
    return FactorisedEngine(job.model, as_output(job.output), selected, projector)


def _read(job: Job, dataset: Any, rows: list[int]) -> Any:
    """Read samples as one batch."""
    output, some = as_output(job.output), Subset(dataset, rows)
    return Batches.of(job.model, output, some, _CPU, job.collate).read(0, len(rows))


def check_data(job: Job, split: str) -> tuple[Check, str | None]:
    """Check that a sample is the same when it is read twice; if so, return the data's fingerprint."""
    where = f"data of {split}"
    try:
        dataset = job.datasets[split]
        count = dataset_rows(dataset)
        fingerprint = dataset_fingerprint(dataset, sample_ids(job.ids.get(split), count))
    except TrakStoreError as error:
        remedy = "give a data set whose sample i is always the same: no shuffling, no augmentation"
        return Check("samples stay", where, "fail", None, str(error), remedy), None
    meaning = f"of {count:,} samples read twice, each equal to itself"
    return Check("samples stay", where, "pass", len(hashed_rows(count)), meaning), fingerprint


def check_model(job: Job, split: str, spec: ProjectionSpec) -> Iterator[Check]:
    """Check the model on a few samples; it must have the right weights."""
    where = f"model, samples of {split}"
    with evaluated(job.model, _CPU):
        probe = Probe.of(job, split)
        sound = [_nothing_random(probe, where), _independent(probe, where)]
        yield from sound
        yield _frozen(job)
        if any(check.verdict == "fail" for check in sound):
            return  # samples then have no gradients of their own
        yield _without_gradient(probe, where)
        yield _engines(probe, where)
        yield _projection(probe, where, spec)


def _nothing_random(probe: Probe, where: str) -> Check:
    difference = _relative(probe.outputs(), probe.outputs())
    remedy = (
        "something is random in eval mode: use nn.Dropout instead of F.dropout without "
        "training=self.training, and let train() reach every module"
    )
    meaning = "relative change of outputs when asked twice"
    return pass_if(difference == 0, "eval mode: nothing random", where, difference, meaning, remedy)


def _independent(probe: Probe, where: str) -> Check:
    """Check that samples do not see each other: evaluated in pairs, and all in one batch.

    Not one by one, since torch refuses batch statistics of a single sample.
    """
    twos = [probe.outputs(i, i + 2) for i in range(0, probe.size - 1, 2)]
    difference = _relative(torch.cat(twos), probe.outputs(0, 2 * len(twos))) if twos else 0.0
    remedy = (
        "samples see each other: BatchNorm uses batch statistics (track_running_stats=False, or kept "
        "in train mode), or the output reduces over the batch"
    )
    meaning = "relative change of outputs when samples are asked two by two"
    return pass_if(
        difference < SAME, "eval mode: samples apart", where, difference, meaning, remedy
    )


def _frozen(job: Job) -> Check:
    """Warn of frozen parameters that match the job's patterns, since they are silently left out.

    The base of an adapter is excepted: it is meant to be frozen.
    """
    adapted = hasattr(job.model, "peft_config")
    parameters = [(canonical_name(name), p) for name, p in job.model.named_parameters()]
    frozen = [
        name
        for name, p in parameters
        if not p.requires_grad
        and any(fnmatchcase(name, pattern) for pattern in job.parameters)
        and (".lora_" in name or not adapted)
    ]
    remedy = (
        f"{', '.join(frozen[:4])}{', ...' if len(frozen) > 4 else ''} match the patterns "
        f"{list(job.parameters)} and do not require a gradient, so they are left out: set "
        f"requires_grad, or name patterns without them"
    )
    meaning = "frozen parameters among those that were asked for"
    return pass_if(
        not frozen, "no frozen parameters", "model", len(frozen), meaning, remedy, "warn"
    )


def _without_gradient(probe: Probe, where: str) -> Check:
    selected = select_parameters(probe.job.model, probe.job.parameters)
    output = as_output(probe.job.output)
    with torch.enable_grad():
        # One pass for all samples: gradients do not cancel in every entry by chance.
        total = output(probe.job.model, probe.batch).output.sum()
        gradients = torch.autograd.grad(total, list(selected.values()), allow_unused=True)
    idle = [
        canonical_name(name)
        for name, gradient in zip(selected, gradients, strict=True)
        if gradient is None or not bool(gradient.any())
    ]
    remedy = f"outputs do not depend on {', '.join(idle[:4])}: select others, or look at the model"
    meaning = "selected parameters without a gradient"
    return pass_if(not idle, "all parameters are used", where, len(idle), meaning, remedy, "warn")


def _engines(probe: Probe, where: str) -> Check:
    # With one P, equal gradients give equal features; 256 numbers a sample distinguish others.
    spec = ProjectionSpec("sjlt", dim=256)
    difference = _relative(probe.features(spec), probe.features(spec, generic=True))
    remedy = "layer by layer and by torch.func gradients differ: please report the model"
    meaning = "relative difference of features by two engines"
    return pass_if(difference < SAME, "engines agree", where, difference, meaning, remedy)


def _projection(probe: Probe, where: str, spec: ProjectionSpec) -> Check:
    """Check that inner products of features are those of gradients, within the projection's variance.

    For an unbiased projection to k dimensions, Var⟨φ, φ'⟩ is about (‖g‖²‖g'‖² + ⟨g, g'⟩²) / k. So
    errors, divided by the root of the numerator, have a root mean square of about 1/√k, whatever the
    gradients are.
    """
    gradients = probe.features(ProjectionSpec("identity"))
    features = probe.features(spec)
    true, got = gradients @ gradients.T, features @ features.T
    squares = torch.diagonal(true)
    scale = torch.sqrt(torch.outer(squares, squares) + true**2)
    error = float(((got - true) / scale.clamp_min(_TINY)).pow(2).mean().sqrt())
    dim, wanted = features.shape[1], features.shape[1] ** -0.5
    remedy = (
        f"inner products are off by {error / wanted:.1f} times what {dim} dimensions give: use sjlt or "
        f"rademacher, or more dimensions"
    )
    meaning = f"relative error of inner products; {dim} dimensions give {wanted:.3g}"
    near = error < 3 * wanted
    return pass_if(near, "projection keeps angles", where, error, meaning, remedy, "warn")


def _relative(a: Tensor, b: Tensor) -> float:
    """Return the norm of a difference, relative to the larger of both norms."""
    scale = float(torch.maximum(a.norm(), b.norm()))
    return float((a - b).norm()) / scale if scale else 0.0
