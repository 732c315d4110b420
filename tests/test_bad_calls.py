"""Wrong arguments of public functions: errors that say what was got and what was needed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trakstore as ts
from trakstore import analysis, evaluation
from trakstore.analysis import distribution, evolution, trajectories, transition
from trakstore.errors import LocationError
from trakstore.features import Job, featurize, load_job, pad_tokens

SPEC = ts.ProjectionSpec("sjlt", dim=8)


@pytest.fixture
def store(tmp_path: Path) -> ts.FeatureStore:
    made = ts.FeatureStore.create(tmp_path / "a.zarr", projection=SPEC)
    for split, rows in (("train", 12), ("test", 3)):
        features = np.random.default_rng(rows).normal(size=(rows, 8)).astype(np.float32)
        made.write_split(0, split, features, out_to_loss=np.ones(rows))
    return made


Call = Callable[[ts.FeatureStore], Any]
CALLS: dict[str, tuple[Call, str]] = {
    "place": (lambda _: ts.open_store(3), "a place is a path, a URL .*; got 3"),  # type: ignore[arg-type]
    "path": (
        lambda s: ts.trak_scores(str(s.location)),
        "needed an open store, got its path: open_",
    ),
    "path of dots": (lambda s: ts.grad_dot_scores(Path(str(s.location))), "needed an open store"),
    "evolution of a name": (lambda _: evolution("x"), "needed Scores, .* got str"),  # type: ignore[arg-type]
    "distribution of an array": (lambda _: distribution(np.ones((2, 2))), "needed Scores"),  # type: ignore[arg-type]
    "trajectories of a store": (lambda s: trajectories(s, [[0]]), "needed Scores"),  # type: ignore[arg-type]
    "transition of a store": (
        lambda s: transition(ts.trak_scores(s), s),  # type: ignore[arg-type]
        "needed Scores, .* got FeatureStore",
    ),
    "huge k": (
        lambda s: ts.top_k(ts.trak_scores(s), 10**5000),
        "k must be in 1..12 .*got a number of some",
    ),
    "k": (lambda s: ts.top_k(ts.trak_scores(s), 2.5), r"k must be in 1..12 .*got 2.5"),  # type: ignore[arg-type]
    "matrix": (lambda _: ts.top_k(np.ones((3, 4)), 2), "needed Scores, .* got ndarray"),
    "index of nothing": (lambda _: ts.open_index(None), "needed Scores, .* got NoneType"),  # type: ignore[arg-type]
    "index of a store": (lambda s: ts.open_index(s), "needed Scores, .* got FeatureStore"),  # type: ignore[arg-type]
    "index of a matrix": (
        lambda s: ts.open_index(ts.trak_scores(s).to_xarray()),  # type: ignore[arg-type]
        "needed Scores, .* got DataArray",
    ),
    "saved": (lambda s: ts.save_scores(np.ones((3, 12)), s, "a"), "needed Scores, .* got ndarray"),
    "dim": (lambda _: ts.ProjectionSpec("sjlt", dim=2.5), "dim must be an integer .* got 2.5"),
    "seed": (lambda _: ts.ProjectionSpec("sjlt", dim=2, seed="a"), "seed must be .* got 'a'"),
    "spec": (lambda _: ts.FeatureStore.create("memory://bad", projection="sjlt"), "got 'sjlt'"),
    "size": (lambda s: ts.trak_scores(s, memory_limit=-1), "must be positive, got -1"),
    "epoch": (
        lambda s: ts.kernel_report(s, -1, "train"),
        "non-negative integer of 19 digits at most, or a name",
    ),
    "number for a split": (lambda s: ts.trak_scores(s, targets=0), "0 cannot name a split"),  # type: ignore[arg-type]
    "nothing for a split": (lambda s: ts.neighbours(s, None), "None cannot name a split"),  # type: ignore[arg-type]
    "split": (lambda s: s.features(0, "tran"), "did you mean 'train'"),
    "shape": (lambda s: s.write_split(1, "train", np.ones((4, 3))), "dimension 8, got 3"),
    "rows": (lambda s: s.write_split(1, "train", np.ones((4, 8)), ids=[1]), "ids must be 4"),
    "no store": (lambda _: ts.trak_scores(None), "needed an open store, .* got None"),  # type: ignore[arg-type]
    "no store of a kernel": (lambda s: ts.kernel_report(str(s.location), 0), "got its path"),
    "solver": (lambda s: ts.trak_scores(s, solver="x"), "solver must be a Solver.* got 'x'"),
    "gram": (
        lambda s: ts.trak_scores(s, gram_dtype="float16"),
        "float32 or float64, got 'float16'",
    ),
    "gram of a kernel": (
        lambda s: ts.kernel_report(s, 0, gram_dtype="float16"),
        "float32 or float64, got 'float16'",
    ),
    "gram of arrays": (
        lambda _: ts.trak_scores_of_arrays(np.eye(3), np.eye(3), gram_dtype="f8"),
        "float32 or float64, got 'f8'",
    ),
    **{
        f"damping of a query {value}": (
            lambda s, value=value: ts.Query(s, damping=value),
            f"damping must be a finite number >= 0, got {value}",
        )
        for value in (-1, True)
    },
    "kernel of a query": (
        lambda s: ts.Query(s, method="grad-dot", kernel="x"),  # type: ignore[arg-type]
        "kernel must be 'train', 'sampled' or None, got 'x'",
    ),
    "index of a query": (
        lambda s: ts.Query(s, index="no"),  # type: ignore[arg-type]
        "index must be True or False, got 'no'",
    ),
    "epoch of a question": (
        lambda s: ts.Query(s).ask(target=0, epochs=1.0),  # type: ignore[arg-type]
        "an epoch is a non-negative integer .* got 1.0",
    ),
    **{
        f"method of a question {value}": (
            lambda s, value=value: ts.Query(s).ask(target=0, method=value),
            rf"method must be a name, such as 'trak', got {re.escape(repr(value))}",
        )
        for value in (1, True, [])
    },
    **{
        f"tokens of a question {value}": (
            lambda s, value=value: ts.Query(s).ask(target=0, tokens=value),
            f"tokens must be an integer from 0 to 20, got {value}",
        )
        for value in (False, None)
    },
    **{
        f"rows of a column {key}": (
            lambda s, key=key: s.split(0, "train").column("features")[key],
            rf"0/train/features takes a row or a slice of rows, got {re.escape(repr(key))}",
        )
        for key in ([3, 1], [True], True, ..., None, 1.0)
    },
    "damping twice": (lambda _: ts.Damping(1.0, absolute=1.0), "got both: 1.0 and 1.0"),
    "no damping": (
        lambda s: ts.whitened_cos_scores(s, damping=None),
        "finite number >= 0, got None",
    ),
    **{
        f"blocks {rows}": (
            lambda s, rows=rows: s.write_split(1, "train", np.ones((4, 8)), block_rows=rows),
            f"block_rows must be an integer, 1 or more, got {rows}",
        )
        for rows in (0, -3, 2.5, True)
    },
    **{
        f"rate {rate}": (
            lambda s, rate=rate: s.write_split(1, "train", np.ones((4, 8)), learning_rate=rate),
            f"learning_rate must be a number >= 0, got {rate!r}",
        )
        for rate in (-1, float("nan"), float("inf"), "0.1", True)
    },
    "checkpoint": (
        lambda s: s.write_split(1, "train", np.ones((4, 8)), checkpoint=5),
        "checkpoint must be a text or None, got 5",
    ),
    "huge epoch": (
        lambda s: s.split(10**5000, "train"),
        "19 digits at most, or a name, got a number of some",
    ),
    "digits": (lambda s: s.split("9" * 5000, "train"), "'9{20}' is no number of an epoch"),
    "zeros": (lambda s: s.write_split("01", "train", np.ones((4, 8))), "no zeros before them"),
    "epoch of new rows": (
        lambda s: s.write_split(10**5000, "train", np.ones((4, 8))),
        "got a number of some",
    ),
    "masked": (lambda s: s.mask("train", [1], masked="no"), "must be True or False, got 'no'"),
    "saved dtype": (
        lambda s: ts.save_scores(ts.trak_scores(s), s, "a", dtype="float64"),  # type: ignore[arg-type]
        "saved as float32 or float16, got 'float64'",
    ),
    **{
        f"ids {what}": (
            lambda s, ids=ids: s.write_split(1, "train", np.ones((2, 8)), ids=ids),
            said,
        )
        for what, ids, said in (
            ("with a null", ["a\0", "a"], r"without null characters, got 'a\\x00'"),
            ("half a pair", np.array(["\udcff", "a"]), "text that UTF-8 can hold, got"),
            ("too long", ["x" * 70_000, "a"], "65,536 characters at most, got one of 70,000"),
        )
    },
    "masked id": (lambda s: s.mask("train", ["a\0"]), "without null characters"),
    "scores": (lambda s: ts.drop_scores(s, "a"), "has no scores 'a'; there are none yet"),
}


MATRIX, HALVES = (
    np.random.default_rng(0).normal(size=(3, 12)),
    np.arange(12 * 20).reshape(20, 12) % 2,
)
OUTPUTS = np.random.default_rng(1).normal(size=(20, 3))
SUBSETS = "subsets must be booleans .or 0 and 1., not positions, got"
EVALUATED: dict[str, tuple[Call, str]] = {
    "numbers of rows of an LDS": (
        lambda _: evaluation.lds(MATRIX, np.arange(240).reshape(20, 12), OUTPUTS),
        SUBSETS,
    ),
    "weights of an LDS": (lambda _: evaluation.lds(MATRIX, HALVES * 0.5, OUTPUTS), SUBSETS),  # type: ignore[arg-type]
    "ragged subsets": (lambda _: evaluation.lds(MATRIX, [[1], [1, 0]], OUTPUTS), SUBSETS),  # type: ignore[arg-type]
    "numbers of rows of predicted outputs": (
        lambda _: evaluation.predicted_outputs(MATRIX, np.arange(240).reshape(20, 12)),
        SUBSETS,
    ),
    "numbers of rows of models": (
        lambda s: evaluation.add_retrained(s, "m", np.arange(240).reshape(20, 12), OUTPUTS),
        SUBSETS,
    ),
    "one subset of models": (
        lambda s: evaluation.add_retrained(s, "m", True, OUTPUTS),  # type: ignore[arg-type]
        r"needed subsets \(models, train rows\), got \(\)",
    ),
    "numbers of wrong samples": (
        lambda _: evaluation.detection(np.arange(3.0), [0, 2, 1]),
        "wrong must be booleans",
    ),
    "numbers of aligned targets": (
        lambda s: analysis.contrast(ts.trak_scores(s), [0, 2, 1], [0, 0, 0]),
        "aligned must be booleans",
    ),
    **{
        f"labels {labels}": (
            lambda _, labels=labels: evaluation.plant_noise(labels, 0.5),
            "labels must be whole numbers from 0, got",
        )
        for labels in ([0.7, 1.2], ["a", "b"], [-1, 2], [], [[0, 1]], [0.0, float("nan")])
    },
    "labels of fewer classes": (
        lambda _: evaluation.plant_noise([0, 5], 0.5, classes=2),
        "labels are from 0 to 1, got 5",
    ),
    **{
        f"labels with NaN of {side}": (
            lambda s, of=of: analysis.same_class_share(ts.trak_scores(s), *of),
            "labels are NaN for some rows: give each a class, or leave it out",
        )
        for side, of in (
            ("train rows", (np.full(12, np.nan), np.zeros(3))),
            ("targets", (np.zeros(12), [0, 1, np.nan])),
        )
    },
    **{
        f"matrix of {name}": (
            call,
            "needed scores of shape .target, train., .* got (list|NoneType)",
        )
        for name, call in (
            ("an LDS", lambda _: evaluation.lds(MATRIX.tolist(), HALVES, OUTPUTS)),
            ("predicted outputs", lambda _: evaluation.predicted_outputs(None, HALVES)),  # type: ignore[arg-type]
            ("stability", lambda _: evaluation.stability([None, None])),  # type: ignore[list-item]
            ("gini", lambda _: analysis.gini(None)),  # type: ignore[arg-type]
            ("own class", lambda _: analysis.same_class_share(None, [0], [0])),  # type: ignore[arg-type]
            ("removals", lambda s: evaluation.counterfactual(None, None, s, "c")),  # type: ignore[arg-type]
        )
    },
    **{
        f"scores of {name}": (call, "needed Scores, .* got NoneType")
        for name, call in (
            ("contrast", lambda _: analysis.contrast(None, [True], [False])),  # type: ignore[arg-type]
            ("evolution", lambda _: analysis.evolution(None)),  # type: ignore[arg-type]
            ("distribution", lambda _: analysis.distribution(None)),  # type: ignore[arg-type]
            ("trajectories", lambda _: analysis.trajectories(None, [[0]])),  # type: ignore[arg-type]
            ("transition", lambda _: analysis.transition(None, None)),  # type: ignore[arg-type]
            ("groups", lambda _: ts.group_scores(None)),  # type: ignore[arg-type]
        )
    },
    "runs": (lambda _: evaluation.stability(3), "two or more runs, got 3"),  # type: ignore[arg-type]
    "runs that are not finite": (
        lambda _: evaluation.stability([MATRIX, MATRIX * np.nan]),
        "the score of target 0 with train row 0 is nan",
    ),
    "side": (
        lambda s: analysis.transition(ts.trak_scores(s), ts.grad_dot_scores(s), k=2).error_rate(
            "x"
        ),  # type: ignore[arg-type]
        "side must be 'gained' or 'lost', got 'x'",
    ),
    "masks": (
        lambda _: evaluation.SubsetPlan(rows=9).masks(5, 2),
        "stop must be .* 5 or more, got 2",
    ),
    "modulus": (lambda _: analysis.modular_addition(0), "modulus must be an integer, 1 or more"),
    "chosen by a mask": (
        lambda _: analysis.compare_properties(
            lambda n: {"a": n}, range(2), np.array([True, False])
        ),
        "chosen must be some positions in 0..1",
    ),
    "sizes": (
        lambda s: evaluation.counterfactual(MATRIX, None, s, "c", sizes=3),  # type: ignore[arg-type]
        "sizes must be a sequence of integers, got 3",
    ),
    "targets of removals": (
        lambda s: evaluation.counterfactual(MATRIX, None, s, "c", sizes=[2], targets=1.5),  # type: ignore[arg-type]
        "targets must be a sequence of integers, got 1.5",
    ),
}
NOTHING: dict[str, tuple[Call, str]] = {
    f"{name} of no {what}": (
        lambda s, call=call, none=none: call(s, ts.trak_scores(s).isel(**none)),
        f"these scores have no {what}: select one at least",
    )
    for what, none in (("targets", {"target": []}), ("train rows", {"train": slice(0, 0)}))
    for name, call in (
        ("list", lambda _, scores: ts.top_k(scores, 1)),
        ("list of an array", lambda _, scores: ts.top_k(scores.to_xarray(), 1)),
        ("index", lambda _, scores: ts.build_index(scores)),
        ("save", lambda s, scores: ts.save_scores(scores, s, "a")),
        ("gini", lambda _, scores: analysis.gini(scores)),
    )
    if (name, what) != ("index", "targets")  # an index is of the train rows
}
FLAGS: dict[str, tuple[Call, str]] = {
    f"{flag} of {name} {value!r}": (
        lambda s, call=call, flag=flag, value=value: call(s, **{flag: value}),
        f"{flag} must be True or False, got {re.escape(repr(value))}",
    )
    for flag, name, call in (
        *(
            ("allow_other_weights", scores.__name__, scores)
            for scores in (
                ts.trak_scores,
                ts.grad_dot_scores,
                ts.whitened_cos_scores,
                ts.neighbours,
            )
        ),
        ("overwrite", "save", lambda s, **more: ts.save_scores(ts.trak_scores(s), s, "a", **more)),
        ("repair", "verify", ts.verify_store),
        ("progress", "verify", ts.verify_store),
        ("per_class", "top_k", lambda s, **more: ts.top_k(ts.trak_scores(s), 2, **more)),
        (
            "per_class",
            "top_k of an array",
            lambda s, **more: ts.top_k(ts.trak_scores(s).to_xarray(), 2, **more),
        ),
        ("allow_missing", "features", lambda s, **more: s.features(0, "train", **more)),
        ("anew", "index", lambda s, **more: ts.build_index(ts.trak_scores(s), **more)),
        ("masked", "mask", lambda s, **more: s.mask("train", [1], **more)),
    )
    for value in ("no", 1, None)
}
PAIR = np.array(["largest", "smallest"])
CHOICES: dict[str, tuple[Call, str]] = {
    f"{name} by an array": (call, said)
    for name, call, said in (
        ("order", lambda s: ts.top_k(ts.trak_scores(s), 2, order=PAIR), "order must be one of"),
        ("of", lambda s: ts.grad_dot_scores(s, of=PAIR), "of must be 'output' or 'loss'"),
        ("metric", lambda s: ts.neighbours(s, "test", metric=PAIR), "metric must be 'l2' or"),
        ("average", lambda s: ts.trak_scores(s, average=PAIR), "average must be 'auto'"),
        ("kernel", lambda s: ts.trak_scores(s, kernel=PAIR), "kernel must be 'train'"),
        ("temperature", lambda s: ts.trak_scores(s, temperature=PAIR), "temperature must be"),
        ("threshold", lambda s: ts.trak_scores(s, soft_threshold=PAIR), "soft_threshold must"),
        ("hessian", lambda s: ts.influence_scores(s, hessian=PAIR), "hessian must be"),
        ("gram", lambda s: ts.trak_scores(s, gram_dtype=PAIR), "gram_dtype is float32 or"),
        ("how", lambda s: ts.group_scores(ts.trak_scores(s), how=PAIR), "how must be 'sum'"),
        ("saved", lambda s: ts.save_scores(ts.trak_scores(s), s, "a", dtype=PAIR), "saved as"),
        ("projection", lambda _: ts.ProjectionSpec(PAIR, dim=2), "unknown projection array"),
        ("weighting", lambda s: ts.kernel_report(s, 0, weighting=PAIR), "a weighting is 'loss'"),
        (
            "dtype",
            lambda _: ts.FeatureStore.create("memory://bad", projection=SPEC, dtype=PAIR),
            "features are stored as float32",
        ),
        (
            "scale",
            lambda s: analysis.transition(ts.trak_scores(s), ts.trak_scores(s), scale=PAIR),
            "scale must be one of standard",
        ),
    )
}
OTHERS: dict[str, tuple[Call, str]] = {
    **{
        f"{name} of a verification {value!r}": (
            lambda s, name=name, value=value: ts.verify_store(s, **{name: value}),
            f"{name} must be {what}, got {re.escape(repr(value))}",
        )
        for name, what, value in (
            ("epochs", "some epochs, each named once", []),
            ("epochs", "some epochs, each named once", ()),
            ("splits", "names of splits, or None for all", []),
            ("splits", "names of splits, or None for all", 3),
            ("splits", "names of splits, or None for all", [0]),
        )
    },
    "masked epochs": (lambda s: s.mask("train", [1], epochs=[]), "epochs must be some epochs"),
    **{
        f"device {value!r} of {name}": (
            lambda s, call=call, value=value: call(s, value),
            "device is 'cuda', 'cuda:1' and the like, or 'cpu', got",
        )
        for name, call in (
            ("trak", lambda s, value: ts.trak_scores(s, device=value)),
            ("influence", lambda s, value: ts.influence_scores(s, hessian="loss", device=value)),
            ("whitened", lambda s, value: ts.whitened_cos_scores(s, device=value)),
            ("scores", lambda s, value: ts.grad_dot_scores(s).to(value)),
        )
        for value in (None, 2.5, [], "gpu")
    },
    **{
        f"range {ends} of a block": (
            lambda s, ends=ends: ts.trak_scores(s).block(*ends),
            f"the {end} of a range of {what} must be an integer",
        )
        for ends, end, what in (
            ((0, 4, 0, 2), "end", "targets"),
            ((-2, 2, 0, 2), "start", "targets"),
            ((2, 1, 0, 2), "end", "targets"),
            ((0, 10**30, 0, 2), "end", "targets"),
            ((0, None, 0, 2), "end", "targets"),
            ((0, 2, 0, 99), "end", "train rows"),
            ((0, 2, -1, 3), "start", "train rows"),
        )
    },
    "window": (lambda s: ts.trak_scores(s).window(0, 9), "range of targets .* 0 to 3, got 9"),
    "output of a store": (
        lambda _: ts.FeatureStore.create("memory://bad", projection=SPEC, output="margin"),  # type: ignore[arg-type]
        r"output needs OutputSpec\(...\) or None, got 'margin'",
    ),
    "parameters of a store": (
        lambda _: ts.FeatureStore.create("memory://bad", projection=SPEC, parameters=["*"]),  # type: ignore[arg-type]
        r"parameters needs ParameterSpec\(...\) or None, got",
    ),
    "weighting": (lambda s: ts.kernel_report(s, 0, weighting=1), "a weighting is .* got 1"),  # type: ignore[arg-type]
    "memory of a stored gram": (
        lambda s: (ts.kernel_report(s, 0), ts.kernel_report(s, 0, memory_limit="x")),
        "'x'",
    ),
    "lists for arrays": (
        lambda _: ts.trak_scores_of_arrays([[1.0]], [[1.0]]),  # type: ignore[arg-type]
        "targets must be floats of shape .rows, k., got list",
    ),
    "trainer": (
        lambda s: evaluation.retrain(3, s, "m", evaluation.SubsetPlan(rows=12), 2),  # type: ignore[arg-type]
        "trainer must be a function of subsets and seeds, got 3",
    ),
    "plan": (
        lambda s: evaluation.retrain(len, s, "m", 3, 2),
        "plan must be a SubsetPlan, .* got 3",
    ),  # type: ignore[arg-type]
    "method": (lambda s: ts.Query(s, method=1), "there is no method 1"),  # type: ignore[arg-type]
    "checkpoints": (
        lambda _: Job(torch.nn.Linear(2, 2), {}, checkpoints=3, projector=SPEC),  # type: ignore[arg-type]
        "checkpoints must be a mapping, like .* got 3",
    ),
    "name of a job": (
        lambda _: Job(torch.nn.Linear(2, 2), {}, name=3, projector=SPEC),  # type: ignore[arg-type]
        "name must be a text, got 3",
    ),
    "job to load": (lambda _: load_job(3), "a job is named like jobs.py:name .* got 3"),  # type: ignore[arg-type]
    "batch of nothing": (lambda _: pad_tokens([]), "there are no samples to make a batch of"),
    "finished": (
        lambda s: evaluation.retrain(len, s, "m", evaluation.SubsetPlan(rows=9), 2, finished=3),  # type: ignore[arg-type]
        "finished must be a function of a number, got 3",
    ),
}
CALLS |= EVALUATED | NOTHING | FLAGS | CHOICES | OTHERS


@pytest.mark.parametrize("case", CALLS)
def test_calls(case: str, store: ts.FeatureStore) -> None:
    call, said = CALLS[case]
    with pytest.raises(ts.TrakStoreError, match=said):
        call(store)


PLACES = {
    "user": ("~nobody-at-all/a.zarr", "leads to no home folder: give the whole path"),
    "long": ("x" * 300, "cannot be a place: File name too long; choose another place"),
    "deep": ("y/" * 4000, "cannot be a place: File name too long"),
}


@pytest.mark.parametrize("case", PLACES)
def test_places(case: str) -> None:
    place, said = PLACES[case]
    for use in (ts.open_store, lambda where: ts.FeatureStore.create(where, projection=SPEC)):
        with pytest.raises(LocationError, match=said):
            use(place)


def test_a_working_directory_that_is_gone(
    store: ts.FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(LocationError, match="the working directory is gone; change to another"):
        ts.open_store("a.zarr")
    assert ts.open_store(str(store.location)).epochs == (0,)


def test_rows_that_torch_holds_a_gradient_of_are_stored(store: ts.FeatureStore) -> None:
    rows = torch.arange(32.0).reshape(4, 8).requires_grad_()
    stored = store.write_split(1, "train", rows)
    assert np.array_equal(stored.column("features").read(0, 4), rows.detach().numpy())


FEATURIZED = {
    "gpu": ({"device": "gpu"}, "device 'gpu' cannot be used"),
    "no gpu": ({"device": "cuda:99"}, "device 'cuda:99' cannot be used .*: use cpu"),
    "meta": ({"device": "meta"}, "tensors there have no numbers"),
    "batch": ({"batch_size": 2.5}, "batch_size must be an integer, 1 or more, got 2.5"),
    "block": ({"block_rows": 1.5}, "block_rows must be an integer"),
    "bits": ({"keep_bits": 0}, "keep_bits must be an integer, 1 or more, got 0"),
    "projector": ({"projector": "sjlt"}, "projector must be a ProjectionSpec.* got 'sjlt'"),
    "collate": ({"collate": 3}, "collate must be a function of a list, got 3"),
    "rate": ({"learning_rate": "x"}, "learning rate of epoch 0 must be a number >= 0, got 'x'"),
    "negative": ({"learning_rate": -0.1}, "must be a number >= 0, got -0.1"),
    "output": ({"output": "margn"}, "did you mean 'margin'"),
    "no batch": ({"batch_size": None}, "batch_size must be an integer, 1 or more, got None"),
    "no split": ({"split": None}, "None cannot name a split"),
    "no activations": ({"activations": None}, "activations must be the name of a layer or a list"),
    "numbers of layers": ({"activations": [1]}, r"activations must be .* got \[1\]"),
    "skip": ({"skip_bad_rows": "no"}, "skip_bad_rows must be True or False, got 'no'"),
    "append": ({"append": "no"}, "append must be True or False, got 'no'"),
    "check": ({"check": PAIR}, "check must be 'some' or 'all', got array"),
    "precision": ({"precision": PAIR}, "precision is one of float32"),
    "drawn": ({"labels": PAIR}, "labels are 'given' or 'sampled', got array"),
    "number of a gpu": ({"device": 2.5}, "device 2.5 cannot be used"),
    "dtype": ({"dtype": "float64"}, "stored as float32, float16, int8, got 'float64'"),
    "parameters": ({"parameters": ["nope*"]}, "matches 'nope[*]'; the model has weight, bias"),
}


@pytest.mark.parametrize("case", FEATURIZED)
def test_featurize(case: str, tmp_path: Path) -> None:
    options, said = FEATURIZED[case]
    model = torch.nn.Linear(4, 3)
    samples = torch.utils.data.TensorDataset(torch.zeros(6, 4), torch.zeros(6, dtype=torch.int64))
    asked: dict[str, Any] = {"projector": SPEC, "progress": False, **options}
    with pytest.raises(ts.TrakStoreError) as caught:
        featurize(model, samples, tmp_path / "a.zarr", **asked)
    assert re.search(said, str(caught.value))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.zarr").exists()
    assert model.weight.device.type == "cpu"
