"""Answers from Python: equal to those of lists over stored targets, and of nothing else."""

from __future__ import annotations

import pickle
import shutil
import threading
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.errors import LocationError, SpecMismatchError, TrakStoreError
from trakstore.methods.by_name import METHODS, scores_by_name
from trakstore.serve import Answer
from trakstore.serve.bodies import question_of
from trakstore.serve.limits import Limits
from trakstore.serve.question import BadQuestionError, Question, UnknownSampleError
from trakstore.storage.backends.read_only import ReadOnlyLocation

EPOCHS = [1, 2, 3, "final"]


def lists(answer: Answer) -> tuple[Any, ...]:
    """Ids and scores of both ends."""
    return tuple(
        value
        for end in (answer.proponents, answer.opponents)
        for value in ([one.id for one in end], [one.score for one in end])
    )


def expected(scores: ts.Scores, k: int) -> tuple[Any, ...]:
    """The same from ``top_k``, for scores of one target."""
    ends = [ts.top_k(scores, k, order=order) for order in ("largest", "smallest")]
    return tuple(end[name].values[0].tolist() for end in ends for name in ("train", "score"))


@pytest.fixture(scope="module")
def job(job_name: str) -> Any:
    from trakstore.features import load_job

    return load_job(job_name)


def test_a_path_is_no_store(store: ts.FeatureStore) -> None:
    with pytest.raises(TrakStoreError, match=r"needed an open store, got its path: open_store\("):
        ts.Query(str(store.location))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_an_answer_about_a_stored_target_has_the_bits_of_top_k(
    method: str, query: ts.Query, store: ts.FeatureStore
) -> None:
    scores = scores_by_name(method, store, damping=1.0) if "cos" not in method else None
    scores = scores or scores_by_name(method, store)
    answer = query.ask(target=105, k=7, method=method)
    assert lists(answer) == expected(scores.isel(target=[5]), 7)
    assert (answer.target, answer.split, answer.epochs) == (105, "test", tuple(EPOCHS))


@pytest.mark.parametrize("method", METHODS)
def test_a_new_sample_has_the_bits_of_a_split_of_single_samples(
    method: str, query: ts.Query, job: Any, own_store: ts.FeatureStore
) -> None:
    from dataclasses import replace

    from trakstore.features import featurize_job

    data = {"alone": [job.datasets["test"][5]]}
    alone = replace(job, datasets=data, ids={}, batch_size=1, checkpoints=job.checkpoints)
    featurize_job(alone, own_store, progress=False)
    answer = query.ask(job.datasets["test"][5], k=7, method=method)
    assert lists(answer) == expected(scores_by_name(method, own_store, "alone"), 7)
    stored = query.ask(target=105, k=7, method=method)  # of a batch of five
    assert [one.id for one in answer.proponents] == [one.id for one in stored.proponents]
    np.testing.assert_allclose(
        [one.score for one in answer.proponents],
        [one.score for one in stored.proponents],
        rtol=1e-4,
    )
    assert answer.target is None and answer.label == stored.label


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_narrow_stores_round_new_samples_as_their_rows(
    dtype: Any, job: Any, tmp_path: Path
) -> None:
    from dataclasses import replace

    from trakstore.features import featurize_job

    narrow = replace(job, dtype=dtype)
    featurize_job(narrow, tmp_path / "n.zarr", progress=False)
    query = ts.Query(ts.open_store(tmp_path / "n.zarr"), narrow)
    data = {"alone": [job.datasets["test"][5]]}
    alone = replace(narrow, datasets=data, ids={}, batch_size=1)
    featurize_job(alone, tmp_path / "n.zarr", progress=False)
    store = ts.open_store(tmp_path / "n.zarr")
    for method in ("trak", "grad-cos"):
        answer = query.ask(job.datasets["test"][5], k=7, method=method)
        assert lists(answer) == expected(scores_by_name(method, store, "alone"), 7)
        answer = query.ask(target=105, k=7, method=method)
        assert lists(answer) == expected(scores_by_name(method, store).isel(target=[5]), 7)


def test_some_epochs_are_combined_as_scores_of_these(
    query: ts.Query, store: ts.FeatureStore
) -> None:
    scores = ts.trak_scores(store, epochs=["final", 2])
    answer = query.ask(target=100, k=3, epochs=["final", 2])
    assert lists(answer) == expected(scores.isel(target=[0]), 3)
    assert answer.epochs == ("final", 2)


def test_each_epoch_alone_is_told_with_an_interval(query: ts.Query, store: ts.FeatureStore) -> None:
    scores = ts.trak_scores(store).isel(target=[3])
    first = query.ask(target=103, k=2).proponents[0]
    alone = [np.asarray(scores.epoch(one))[0, first.position] for one in EPOCHS]
    np.testing.assert_allclose(first.by_epoch, alone, rtol=1e-5)
    np.testing.assert_allclose(np.mean(first.by_epoch), first.score, rtol=1e-5)
    assert first.low is not None and first.high is not None
    assert min(alone) - 1e-6 <= first.low < first.score < first.high <= max(alone) + 1e-6
    assert query.ask(target=103, k=2, epochs=[1, 2]).proponents[0].low is None


def test_intervals_are_explained_where_there_are_some(query: ts.Query) -> None:
    said = "Below each score, a 95% interval over the epochs"
    assert said in query.ask(target=103, k=3)._repr_html_()
    assert said not in query.ask(target=103, k=3, epochs=[1, 2])._repr_html_()


def test_train_samples_can_be_asked_about_and_are_their_own_proponents(query: ts.Query) -> None:
    for target in ("a7", "@7"):
        answer = query.ask(k=1, target=target, split="train")
        assert (answer.split, answer.target) == ("train", "a7")
        assert answer.proponents[0].id == "a7"


def test_a_target_is_of_the_targets_where_both_splits_have_its_id(tmp_path: Path) -> None:
    store = ts.FeatureStore.create(tmp_path / "s.zarr", projection=ts.ProjectionSpec("identity"))
    rows = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    for split, ids in (("train", range(6)), ("test", (8, 3, 5))):
        store.write_split(0, split, rows[: len(ids)], out_to_loss=np.ones(len(ids)), ids=list(ids))
    query, scores = ts.Query(store), ts.trak_scores(store)
    for target in (3, "3", "@1"):
        answer = query.ask(target=target, k=6)
        assert (answer.split, answer.target) == ("test", 3)
        assert lists(answer) == expected(scores.isel(target=[1]), 6)
    assert query.ask(target=3, split="train").split == "train"
    # 4 is of the train split alone, as the command line has it.
    with pytest.raises(UnknownSampleError, match="test has no sample id '4'; train has it"):
        query.ask(target=4)


def test_rows_that_are_masked_are_neither_listed_nor_asked_about(
    own_store: ts.FeatureStore, job_name: str
) -> None:
    best = ts.Query(own_store).ask(target=100, k=1).proponents[0].id
    own_store.mask("train", [best])
    query = ts.Query(own_store, job_name)
    answer = query.ask(target=100, k=39)
    assert best not in [one.id for one in answer.proponents]
    scores = ts.trak_scores(own_store).isel(target=[0])
    assert lists(answer) == expected(scores, 39)
    first = answer.proponents[0]
    assert first.by_epoch[0] == pytest.approx(
        float(np.asarray(scores.epoch(1))[0, list_of_ids(scores).index(first.id)]), rel=1e-5
    )
    with pytest.raises(UnknownSampleError, match="no sample id"):
        query.ask(target=best, split="train")


def list_of_ids(scores: ts.Scores) -> list[Any]:
    ids: list[Any] = scores.train_ids.read(0, scores.shape[1]).tolist()
    return ids


def test_images_become_samples_with_the_class_that_the_model_says(
    query: ts.Query, job: Any
) -> None:
    from PIL import Image

    pixels = (job.datasets["test"][2][0][0].numpy() * 255).round().astype(np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).resize((64, 64), Image.Resampling.NEAREST).save(file, "PNG")
    import torch

    sample = torch.from_numpy(pixels.astype(np.float32) / 255)[None]
    exact = query.ask(image=Image.fromarray(pixels), k=4)
    assert exact.label == exact.predicted
    assert lists(exact) == lists(query.ask((sample, torch.tensor(exact.label)), k=4))
    other = (exact.label + 1) % 3
    assert query.ask(image=Image.fromarray(pixels), label=other, k=4).label == other
    assert query.ask(image=file.getvalue(), k=4).shown.image.startswith("data:image/png")


def test_a_function_makes_samples(store: ts.FeatureStore, job_name: str) -> None:
    from PIL import Image

    place = job_name.removesuffix("images")
    query = ts.Query(store, job_name, prepare=f"{place}repeated")
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    assert lists(query.ask(image=image, label=1, k=3)) == lists(
        ts.Query(store, job_name).ask(image=image, label=1, k=3)
    )
    with pytest.raises(TrakStoreError, match="prepare function"):
        query.ask(text="words")


@pytest.mark.parametrize(("rows", "listed"), [(5, 5), (30, 20)])
def test_lists_have_20_entries_or_all(rows: int, listed: int, tmp_path: Path) -> None:
    store = ts.FeatureStore.create(tmp_path / "s", projection=ts.ProjectionSpec("sjlt", dim=4))
    for split, count in (("train", rows), ("test", 2)):
        features = np.random.default_rng(count).normal(size=(count, 4)).astype("f4")
        store.write_split(0, split, features, out_to_loss=np.ones(count))
    query = ts.Query(ts.open_store(tmp_path / "s"))
    assert len(query.ask(target="@1").proponents) == listed
    (answer,) = query.stages(question_of({"target": "@1"}, Limits()), stages=1)
    assert len(answer.opponents) == listed


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "give one of target, text, image, sample: got none"),
    "two": ({"target": 1, "text": "a"}, "got target and text"),
    "k of zero": ({"target": 100, "k": 0}, "k must be an integer.* 40, got 0"),
    "k above": ({"target": 100, "k": 41}, " 40, got 41"),
    "id": ({"target": 3}, "test has no sample id '3'; @N names row N, from @0 to @11"),
    "id of train": ({"target": "a7"}, "test has no .* 'a7'; train has it: ask with split='train'"),
    "row of train": ({"target": "@12"}, "test has no sample id '@12'; train has it"),
    "id of test": ({"target": 103, "split": "train"}, "train has no .* '103'; test has it"),
    "huge id": ({"target": 10**30}, "no sample id"),
    "row": ({"target": "@40", "split": "train"}, "train has no sample id '@40'"),
    "split": ({"target": 100, "split": "tset"}, "no split 'tset'; did you mean 'test'"),
    "epoch": ({"target": 100, "epochs": [9]}, "no epoch 9"),
    "epochs": ({"target": 100, "epochs": []}, "some epochs, each named once"),
    "twice": ({"target": 100, "epochs": [1, 1]}, "each named once"),
    "method": ({"target": 100, "method": "track"}, "no method 'track'; did you mean 'trak'"),
    "text": ({"text": "words"}, "not made of texts"),
    "no image": ({"image": b"GIF89a nothing"}, "the image cannot be read"),
    "shape": ({"sample": [[1.0, 2.0], 0]}, r"sample\[0\] must be numbers of shape \(1, 8, 8\)"),
    "no label": ({"sample": [[[[0.0] * 8] * 8]]}, "must be a list of 2"),
    "words": ({"sample": [[[["x"] * 8] * 8], 0]}, "must be numbers of shape"),
}


@pytest.mark.parametrize("case", BAD)
def test_questions_without_an_answer(case: str, query: ts.Query) -> None:
    given, message = BAD[case]
    with pytest.raises(BadQuestionError, match=message):
        query.ask(**given)


def test_a_bomb_is_not_opened(query: ts.Query) -> None:
    from PIL import Image

    for side, message in ((5000, "5000 x 5000 pixels"), (20_000, "the image cannot be read")):
        file = BytesIO()
        Image.new("1", (side, side)).save(file, "PNG")  # 50 KB at most
        assert file.tell() < 60_000
        with pytest.raises(BadQuestionError, match=message):
            query.ask(image=file.getvalue())


def test_a_label_that_is_no_class_is_refused(query: ts.Query, job: Any) -> None:
    sample = job.datasets["test"][0][0]
    with pytest.raises(TrakStoreError, match="label 3"):
        query.ask((sample, 3))
    with pytest.raises(TrakStoreError, match=r"finite|NaN"):
        query.ask((sample * float("nan"), 0))
    query.ask((sample, 0))  # and goes on


def test_without_a_job_only_the_store_is_asked(store: ts.FeatureStore) -> None:
    query = ts.Query(store)
    answer = query.ask(target=100, k=2)
    assert answer.proponents[0].shown is None and answer.predicted is None
    with pytest.raises(BadQuestionError, match="there is no job"):
        query.ask(text="a")


def test_a_job_with_other_weights_is_refused(store: ts.FeatureStore, job_name: str) -> None:
    place = job_name.removesuffix("images")
    with pytest.raises(SpecMismatchError, match="weights of epoch 2"):
        ts.Query(store, f"{place}others")


def test_nothing_in_the_store_changes(own_store: ts.FeatureStore, job_name: str) -> None:
    root = Path(str(own_store.location))
    shutil.rmtree(root / "grams", ignore_errors=True)  # those of other tests
    before = {one: one.stat().st_mtime_ns for one in root.rglob("*")}
    query = ts.Query(own_store, job_name)
    for method in METHODS:
        query.ask(target=100, method=method)
    query.ask(query._finder.new.dataset[0])
    assert {one: one.stat().st_mtime_ns for one in root.rglob("*")} == before
    with pytest.raises(LocationError, match="reading alone"):
        query.store.mask("train", ["a1"])


def test_a_place_for_reading_goes_to_other_processes_as_one(store: ts.FeatureStore) -> None:
    place = pickle.loads(pickle.dumps(ReadOnlyLocation.of(store.location)))  # noqa: S301
    assert place == ReadOnlyLocation.of(store.location) != store.location
    assert place.get("zarr.json") is not None
    for write in (
        lambda: place.put({"a": b"b"}),
        lambda: place.put_chunk("a", b"b"),
        lambda: place.put_if_absent("a", b"b"),
        lambda: place.delete(["zarr.json"]),
        lambda: place.delete_folder("1"),
    ):
        with pytest.raises(LocationError, match="reading alone"):
            write()


def test_stages_end_in_the_answer(store: ts.FeatureStore) -> None:
    query = ts.Query(store)
    *partial, last = query.stages(Question(target=100, k=5), stages=4)
    assert [one.share for one in partial] == sorted({one.share for one in partial})
    assert last.share == 1 and lists(last) == lists(query.ask(target=100, k=5))
    assert all(len(one.proponents) <= 5 for one in partial)


def test_a_question_can_be_given_up(query: ts.Query) -> None:
    def gone() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        list(query.stages(Question(target=100), go_on=gone))


def test_threads_ask_at_once(query: ts.Query, job: Any) -> None:
    samples = [job.datasets["test"][at] for at in range(8)]
    alone = [lists(query.ask(one, k=5)) for one in samples]
    together: dict[int, Any] = {}

    def ask(at: int) -> None:
        together[at] = lists(query.ask(samples[at], k=5))

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert [together[at] for at in range(8)] == alone


def test_an_answer_is_data_and_shows_itself(query: ts.Query) -> None:
    import json

    answer = query.ask(target=100, k=3)
    document = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert document["target"] == 100 and len(document["opponents"]) == 3
    assert document["proponents"][0].keys() >= {"id", "score", "position", "label", "image"}
    assert document["provenance"]["train_rows"] == 40
    assert document["provenance"]["store"] == "run.zarr"
    assert repr(answer).startswith("Answer(trak of 100 of test: ")


def test_a_store_whose_first_row_is_masked_starts(
    own_store: ts.FeatureStore, job_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_store.mask("test", [100])
    query = ts.Query(own_store, job_name)
    tried: list[Any] = []
    rows = query._served.models.rows
    monkeypatch.setattr(
        query._served.models, "rows", lambda *given: tried.append(given[0]) or rows(*given)
    )
    query.prepare()
    assert (tried[0][0] == query._served.job.datasets["test"][1][0]).all()


def test_a_sample_that_fails_at_the_start_is_for_the_log(
    store: ts.FeatureStore,
    job_name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    query = ts.Query(store, job_name)

    def bad(*_: object) -> Any:
        raise TrakStoreError("no such sample")

    monkeypatch.setattr(query._served.models, "rows", bad)
    assert query.prepare() is query
    assert "no such sample" in caplog.text


def test_samples_of_a_tf32_store_are_computed_in_tf32(job: Any, tmp_path: Path) -> None:
    from dataclasses import replace

    import torch

    from trakstore.features import featurize_job
    from trakstore.features.precision import are_tf32

    seen: list[bool] = []

    class Noting(torch.nn.Linear):
        def forward(self, given: Any) -> Any:
            seen.append(are_tf32())
            return super().forward(given)

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), Noting(64, 3))
    coarse = replace(job, model=model, checkpoints=None, precision="tf32", learning_rates={})
    featurize_job(coarse, tmp_path / "c.zarr", progress=False)
    query = ts.Query(ts.open_store(tmp_path / "c.zarr"), coarse)
    seen.clear()
    sample = job.datasets["test"][5]
    assert lists(query.ask(sample, k=2))[0] == lists(query.ask(target=105, k=2))[0]
    assert seen and all(seen)


def test_held_methods_go_on_while_another_kernel_is_factored(
    store: ts.FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trakstore.serve import held_kernels, held_rows

    query = ts.Query(store)
    query.ask(target=100, k=1)
    begun, go_on, real = threading.Event(), threading.Event(), held_kernels.scores_by_name

    def slow(*given: Any, **how: Any) -> Any:
        begun.set()
        assert go_on.wait(20)
        return real(*given, **how)

    read: list[Any] = []
    in_memory = held_rows._in_memory
    monkeypatch.setattr(held_kernels, "scores_by_name", slow)
    monkeypatch.setattr(
        held_rows, "_in_memory", lambda rows: read.append(rows.shape) or in_memory(rows)
    )
    answers: list[Answer] = []
    asked = {"target": 100, "k": 1, "method": "influence"}
    threads = [
        threading.Thread(target=lambda: answers.append(query.ask(**asked))) for _ in range(2)
    ]
    held = threading.Thread(target=lambda: answers.append(query.ask(target=101, k=1)))
    threads[0].start()
    assert begun.wait(20)
    begun.clear()
    threads[1].start()
    held.start()
    held.join(20)
    assert [one.method for one in answers] == ["trak"]
    assert not begun.is_set()  # the second one waits for the first
    go_on.set()
    for one in threads:
        one.join()
    assert [one.method for one in answers] == ["trak", "influence", "influence"]
    # The rows of all epochs were in memory already.
    assert not [shape for shape in read if len(shape) == 2]


def test_the_model_may_be_one_that_a_function_builds(job: Any, store: ts.FeatureStore) -> None:
    from torch import nn

    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))

    sample = job.datasets["test"][3]
    own, built = (ts.Query(store, one) for one in (job, replace(job, model=build)))
    assert lists(built.ask(sample, k=5)) == lists(own.ask(sample, k=5))
