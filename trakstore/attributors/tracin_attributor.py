"""``TracInAttributor``: samples in, lists of influences out, with a store behind it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Subset

from trakstore.attributors.kept_features import KeptFeatures, positions
from trakstore.attributors.triples import (
    TripleScore,
    as_triple,
    is_triple,
    scores_triples,
    with_triples,
)
from trakstore.errors import TrakStoreError
from trakstore.features import Job
from trakstore.features.batches import Batches
from trakstore.features.checkpoints import Checkpoint
from trakstore.features.devices import worker_device
from trakstore.features.evaluated import evaluated
from trakstore.features.last_layers import last_layers
from trakstore.features.loading import Loaded, loaded, stratum
from trakstore.features.outputs import ModelOutput, as_output, output_for
from trakstore.features.parameters import select_parameters
from trakstore.methods.tracin import tracin_scores
from trakstore.quantities import as_whole
from trakstore.sampling import Sample, estimate_mean, sample_rows
from trakstore.scores.factored import Scores
from trakstore.scores.running_lists import Order
from trakstore.scores.top_k import top_k as first_of
from trakstore.spec import ProjectionSpec

log = logging.getLogger("trakstore")

Influences = list[dict[str, Any]]


class SampledInfluences(Influences):
    """List of a test sample among drawn train samples, ``{"train_index": int, "influence": float}``.

    Attributes
    ----------
    expected_recall : float
        Share of the true list expected in this one.
    sampled : int
        Train samples that were drawn.
    mean_influence : dict
        For each stratum an estimate of the mean over all of its train samples, with an interval.
    """

    expected_recall: float
    sampled: int
    mean_influence: dict[Any, Any]


class TracInAttributor:
    """TracIn of one model, or TracInCP of its checkpoints.

    Features are computed once: another call with the same samples and weights reads them. Lists are
    exact and take one pass over the stored features, so that stopping early would save nothing.

    Parameters
    ----------
    model : nn.Module
        Model whose loss gradients are taken.
    projection_dim : int, optional
        Dimension of the projection; by default gradients are not projected, which is for small models.
    use_last_layers_only, num_last_layers : bool and int
        Whether to use only the parameters of the layers that the model uses last, and the number of
        these layers. This is cheaper, and another method, since layers may cancel one another. Layers
        have weights of two or more dimensions, so that norms do not count; embeddings that the output
        multiplies with do. The choice is logged, and is in ``parameters`` after a call.
    learning_rates : float or mapping of epoch to float
        Learning rates of the training at the checkpoints.
    checkpoints : mapping of epoch to path or state_dict, optional
        Weights of the model; by default its present ones.
    output : str or ModelOutput
        Output whose loss is used. By default, for samples ``(head, relation, tail)`` and a model that
        takes all three, the logistic loss of its score; otherwise the model's own output, with the last
        entry of a sample as the label (for triples the tail, if the model scores all entities).
    device : str, optional
        By default this worker's GPU if there is one, else the CPU.
    store : path or FeatureStore, optional
        Place of the features; by default a temporary folder that is removed with this object. An
        existing store must have the same output, parameters and projection. Its splits that
        ``featurize`` wrote are used for data sets with the same ids and the same 32 samples; for larger
        data sets a warning says so.

    Attributes
    ----------
    parameters : tuple of str
        Patterns of the parameters whose gradients are taken.

    Examples
    --------
    >>> model = nn.Linear(2, 3)
    >>> train = [(torch.eye(2)[i % 2], i % 3) for i in range(6)]
    >>> one = TracInAttributor(model, device="cpu")
    >>> [len(entries) for entries in one.compute_influences(train[:2], train, top_k=4)]
    [4, 4]
    """

    def __init__(
        self,
        model: nn.Module,
        projection_dim: int | None = None,
        use_last_layers_only: bool = False,
        num_last_layers: int = 2,
        learning_rates: float | Mapping[int | str, float] = 1.0,
        *,
        checkpoints: Mapping[int | str, Checkpoint] | None = None,
        output: str | ModelOutput | None = None,
        device: str | None = None,
        store: Any = None,
    ) -> None:
        self.model, self.checkpoints, self.output = model, checkpoints, output
        self.learning_rates = learning_rates
        self.device = worker_device(None if device is None else str(device))
        # The whole gradients of a small model are its features, so that inner products are exact.
        kind: Any = "identity" if projection_dim is None else "sjlt"
        self.projection = ProjectionSpec(kind, dim=projection_dim)
        self.parameters: tuple[str, ...] = ("*",)
        # The last layers show in a forward pass: they are chosen once there is a sample.
        self._last = 0
        if use_last_layers_only:
            self._last = as_whole(num_last_layers, "num_last_layers", 1)
        self._kept = KeptFeatures(store)

    def compute_influences(
        self,
        test: Any = None,
        train: Any = None,
        top_k: int = 10,
        *,
        test_triple: Any = None,
        training_triples: Any = None,
        learning_rate: float | None = None,
        order: Order = "magnitude",
    ) -> list[Any]:
        """List the train samples with the largest influence on the loss of each test sample.

        Parameters
        ----------
        test, train : DataLoader without shuffling, data set, or list of samples
            Samples ``(input, label)``, or in the form that the output takes. ``test`` may be a single
            sample: a tuple, a dict, or a triple as a tensor or an array. ``train`` may be a tensor or
            an array of triples, a list of such triples, or a factory with ``mapped_triples``.
        top_k : int
            Length of each list; all train samples if there are fewer.
        test_triple, training_triples
            Other names of ``test`` and ``train``.
        learning_rate : float, optional
            Learning rate at all checkpoints, in place of ``learning_rates``.
        order : {"magnitude", "largest", "smallest"}
            Influences that come first: by default those of largest magnitude, whatever their sign.

        Returns
        -------
        list
            For each test sample a list of ``{"train_index": int, "influence": float}``; of a single
            test sample that list itself. Positive: training on the sample lowered the test sample's
            loss.

        Raises
        ------
        TrakStoreError
            When ``test`` or ``train`` is missing, or given twice.
        """
        targets, single = _targets(_one_of("test", test, "test_triple", test_triple))
        data = _samples(_one_of("train", train, "training_triples", training_triples))
        scores = self._scores(targets, data, positions(data.dataset), learning_rate)
        lists = _lists(first_of(scores, min(top_k, scores.shape[1]), order=order))
        return lists[0] if single else lists

    def compute_influences_sampled(
        self,
        test: Any = None,
        train: Any = None,
        sample_rate: float = 0.1,
        stratify_by: str | Callable[[Any], Any] | None = "auto",
        top_k: int = 10,
        *,
        seed: int = 0,
        test_triple: Any = None,
        training_triples: Any = None,
        learning_rate: float | None = None,
        order: Order = "magnitude",
    ) -> Any:
        """List the largest influences among some train samples; most true entries are missing.

        Parameters
        ----------
        test, train, top_k, test_triple, training_triples, learning_rate, order
            As in :meth:`compute_influences`.
        sample_rate : float
            Share of the train samples whose gradients are computed.
        stratify_by : "auto", "label", "relation", key of dict samples, function of a sample, or None
            Strata from which equal shares are drawn: ``"label"`` is the last entry of a sample,
            ``"relation"`` the second of a triple. ``"auto"`` is the relation of triples, otherwise the
            label.
        seed : int
            Seed of the draw.

        Returns
        -------
        dict or SampledInfluences
            ``influences``: lists among the drawn samples, with ``train_index`` counted among all train
            samples; ``expected_recall``: expected share of the true lists; ``sampled``: number of drawn
            samples; ``mean_influence``: for each test sample and stratum, the Horvitz-Thompson estimate
            of the mean over all its train samples, with ``low`` and ``high`` of 95%. A single test
            sample gives its list, with the others as attributes.
        """
        targets, single = _targets(_one_of("test", test, "test_triple", test_triple))
        data = _samples(_one_of("train", train, "training_triples", training_triples))
        # Gradients are computed for drawn samples only, but every sample is read for its stratum.
        rows, every = data.dataset, positions(data.dataset)
        if stratify_by == "auto":
            stratify_by = "relation" if is_triple(rows[0]) else "label"
        strata = np.array([stratum(rows[at], stratify_by) for at in every.tolist()])
        drawn = sample_rows(len(every), sample_rate, strata=strata, seed=seed)
        scores = self._scores_of_drawn(targets, data, drawn, learning_rate)
        lists = _lists(first_of(scores, min(top_k, scores.shape[1]), order=order))
        each = [_means(drawn, row, strata) for row in np.asarray(scores)]
        about = {"expected_recall": scores.shape[1] / len(every), "sampled": scores.shape[1]}
        if not single:
            return {"influences": lists, **about, "mean_influence": each}
        one = SampledInfluences(lists[0])
        vars(one).update(about, mean_influence=each[0])
        return one

    def compute_influence(
        self, train_triple: Any, test_triple: Any, learning_rate: float | None = None
    ) -> float:
        """Compute the influence of one train sample on the loss of one test sample.

        Parameters
        ----------
        train_triple, test_triple : tuple, dict, or tensor or array of a triple
            Two samples, which need not be triples.
        learning_rate : float, optional
            Learning rate at all checkpoints, in place of ``learning_rates``.
        """
        sides = [test_triple], [train_triple]
        (entry,) = self.compute_influences(*sides, learning_rate=learning_rate)[0]
        return float(entry["influence"])

    def compute_gradient(self, *sample: Any, label: float | None = None) -> dict[str, Tensor]:
        """Compute the loss gradient of one sample, unprojected, at the model's present weights.

        Parameters
        ----------
        *sample
            Entries of the sample, such as ``head, relation, tail`` or ``input, label``, or the sample
            itself: a tuple, a dict, or a triple as a tensor or an array.
        label : float, optional
            1 for a true triple, 0 for a false one.

        Returns
        -------
        dict of str to Tensor
            Gradients by parameter name, in the parameters' shapes.

        Raises
        ------
        TrakStoreError
            For a label of 0 if the model does not score triples.
        """
        entries: Any = as_triple(sample[0]) if len(sample) == 1 else sample
        output = as_output(self._job(Loaded([entries])).output)
        if label is not None and isinstance(output, TripleScore):
            entries = (*entries[:3], float(label))
        elif label not in (None, 1):
            raise TrakStoreError("only a model that takes (head, relation, tail) has false triples")
        batches = Batches.of(self.model, output, [entries], self.device, None)
        with evaluated(self.model, self.device), torch.enable_grad():
            chosen = select_parameters(self.model, self.parameters)
            loss = output(self.model, batches.read(0, 1)).loss.sum()
            gradients = torch.autograd.grad(loss, list(chosen.values()), materialize_grads=True)
        return dict(zip(chosen, gradients, strict=True))

    def _scores_of_drawn(
        self, targets: Loaded, data: Loaded, drawn: Sample, learning_rate: float | None
    ) -> Scores:
        """Compute scores with drawn train samples, or read them if all train samples are stored."""
        every = positions(data.dataset)
        if self._kept.has(self._job(data), data.dataset, every, str(self.device)):
            whole = self._scores(targets, data, every, learning_rate)
            return whole.isel(train=drawn.positions)
        part = data._replace(dataset=Subset(data.dataset, drawn.positions.tolist()))
        return self._scores(targets, part, drawn.positions, learning_rate)

    def _scores(
        self, targets: Loaded, train: Loaded, ids: NDArray[np.int64], learning_rate: float | None
    ) -> Scores:
        job = self._job(train)
        store, names = self._kept.computed(
            job,
            {"train": train.dataset, "test": targets.dataset},
            {"train": ids, "test": positions(targets.dataset)},
            str(self.device),
        )
        rates = self.learning_rates if learning_rate is None else learning_rate
        return tracin_scores(
            store, names["test"], names["train"], list(job.epochs), learning_rates=rates
        )

    def _job(self, data: Loaded) -> Job:
        """Make the job for such samples, without its data sets."""
        output = self.output
        if output is None and is_triple(data.dataset[0]) and scores_triples(self.model):
            output = TripleScore()
        self._choose_layers(output, data)
        return Job(
            self.model,
            {},
            output=output,
            projector=self.projection,
            checkpoints=self.checkpoints,
            parameters=self.parameters,
            **data.batches,
        )

    def _choose_layers(self, output: str | ModelOutput | None, data: Loaded) -> None:
        if not self._last or self.parameters != ("*",):
            return
        own = output_for(self.model) if output is None else as_output(output)
        batches = Batches.of(self.model, own, data.dataset, self.device, data.collate)
        with evaluated(self.model, self.device):
            batch = batches.read(0, 1)
            layers = last_layers(self.model, self._last, lambda: own(self.model, batch))
        log.warning("gradients are of the last layers alone: %s", layers.words)
        self.parameters = layers.patterns


def _one_of(name: str, given: Any, other: str, named: Any) -> Any:
    """Return the one of two arguments that was given."""
    if (given is None) == (named is None):
        count = "neither" if given is None else "both"
        raise TrakStoreError(f"give {name} or {other}, got {count}")
    return named if given is None else given


def _samples(given: Any) -> Loaded:
    samples = loaded(with_triples(given))
    if not len(samples.dataset):
        raise TrakStoreError("there are no samples: test and train samples must be one or more")
    return samples


def _targets(given: Any) -> tuple[Loaded, bool]:
    """Return test samples, and whether a single one was given."""
    given = as_triple(given)
    single = isinstance(given, Mapping) or is_triple(given)
    single |= isinstance(given, Tensor) and given.ndim == 1
    if type(given) is tuple:
        # Samples are tuples or dicts, so that a tuple of anything else is one sample.
        single = not all(isinstance(one, tuple | list | Mapping) for one in given)
    if not single:
        return _samples(given), False
    return loaded([given if isinstance(given, Mapping) else tuple(given)]), True


def _lists(top: xr.Dataset) -> list[Influences]:
    """Return lists in the users' form; names of the samples are their positions."""
    both = zip(top["train"].values.tolist(), top["score"].values.tolist(), strict=True)
    return [
        [{"train_index": row, "influence": score} for row, score in zip(*one, strict=True)]
        for one in both
    ]


def _means(drawn: Sample, scores: NDArray[Any], strata: NDArray[Any]) -> dict[Any, Any]:
    """Estimate the mean score of each stratum."""
    means = {one.item(): estimate_mean(drawn, scores, strata == one) for one in np.unique(strata)}
    return {
        name: {"mean": one.value, "low": one.low, "high": one.high} for name, one in means.items()
    }
