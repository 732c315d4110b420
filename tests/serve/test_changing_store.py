"""A service whose store changes while it runs: it answers as one would that is started anew."""

from __future__ import annotations

import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import serving

import trakstore as ts
from trakstore.scores import train_index

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")
ASKED = {"target": 104, "k": 7}


def state_of(document: dict[str, Any]) -> str:
    return str(document["provenance"]["state"])


class Asking:
    """A thread that asks one question again and again, and keeps each answer of its kind."""

    def __init__(self, address: str) -> None:
        self._client = httpx.Client(base_url=address, timeout=60)
        self.answers: dict[str, dict[str, Any]] = {}
        self.states: list[str] = []
        self._ended, self._thread = threading.Event(), threading.Thread(target=self._ask)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._client.close()

    def ask(self) -> dict[str, Any]:
        document: dict[str, Any] = self._client.post("/query", json=ASKED).json()
        return document

    def health(self) -> dict[str, str]:
        answer: dict[str, str] = self._client.get("/health").json()
        return answer

    def _ask(self) -> None:
        while not self._ended.is_set():
            document = self.ask()
            assert document == self.answers.setdefault(state_of(document), document)
            if not self.states or self.states[-1] != state_of(document):
                self.states.append(state_of(document))

    def wait_for(self, wanted: dict[str, Any], seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while state_of(self.ask()) != state_of(wanted):
            assert time.monotonic() < until, self.health()
            time.sleep(0.1)

    def wait_for_health(self, status: str, seconds: float = 60) -> dict[str, str]:
        until = time.monotonic() + seconds
        while (said := self.health())["status"] != status:
            assert time.monotonic() < until
            time.sleep(0.1)
        return said


def fresh(store: Path, job: str | None = None, **how: Any) -> dict[str, Any]:
    """What a query says that is made now, as it comes over HTTP."""
    answer = ts.Query(ts.open_store(store), job, **how).ask(**ASKED)
    document: dict[str, Any] = json.loads(json.dumps(answer.to_dict()))
    return document


def append(store: ts.FeatureStore, epoch: int | str) -> None:
    rng = np.random.default_rng(5)
    store.append(
        epoch,
        "train",
        rng.standard_normal((9, 16)).astype(np.float32) * 30,
        out_to_loss=np.full(9, 0.5, np.float32),
        ids=[f"b{at}" for at in range(9)],
        labels=np.zeros(9, int),
    )


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A store that no job made: rows can be appended to it."""
    place = tmp_path / "run.zarr"
    store, rng = (
        ts.FeatureStore.create(place, projection=ts.ProjectionSpec("sjlt", dim=16)),
        np.random.default_rng(0),
    )
    for epoch in (1, 2):
        for split, ids in (("train", range(400)), ("test", range(100, 106))):
            store.write_split(
                epoch,
                split,
                rng.standard_normal((len(ids), 16)).astype(np.float32),
                out_to_loss=rng.uniform(0.1, 1, len(ids)).astype(np.float32),
                ids=[f"a{at}" for at in ids] if split == "train" else list(ids),
                labels=np.zeros(len(ids), int),
            )
    return place


def test_masked_and_appended_rows_are_seen_and_no_answer_is_of_two_states(place: Path) -> None:
    store, states = ts.open_store(place), [fresh(place)]
    with serving(place) as served, Asking(served.address) as asking:
        asking.wait_for(states[0])
        best = states[0]["proponents"][0]["id"]
        store.mask("train", [best, "a7"])
        states.append(fresh(place))
        assert best not in [one["id"] for one in states[1]["proponents"]]
        asking.wait_for(states[1])
        append(store, 1)  # at one epoch, and not yet at the other
        said = asking.wait_for_health("stale")
        assert "changed" in said["error"] and str(place) not in said["error"]
        assert asking.ask() == states[1]
        append(store, 2)
        states.append(fresh(place))
        assert "b" in "".join(str(one["id"]) for one in states[2]["proponents"])
        asking.wait_for(states[2])
        assert asking.health() == {"status": "ok"}
        assert asking.states == [state_of(one) for one in states]
        assert list(asking.answers.values()) == states
    with serving(place) as served, httpx.Client(base_url=served.address, timeout=60) as client:
        assert client.post("/query", json=ASKED).json() == states[2]


def test_a_service_with_a_job_keeps_its_models(folder: Path, job_name: str, tmp_path: Path) -> None:
    place = tmp_path / "run.zarr"
    shutil.copytree(folder / "run.zarr", place)
    store = ts.open_store(place)
    query = ts.Query(store, job_name)
    store.mask("test", [101])
    store.mask("train", ["a3"])
    renewed = query.renewed()
    assert json.loads(json.dumps(renewed.ask(**ASKED).to_dict())) == fresh(place, job_name)
    sample = query._served.job.datasets["test"][1]
    assert (
        renewed.ask(sample, k=3).to_dict() == ts.Query(store, job_name).ask(sample, k=3).to_dict()
    )
    assert renewed._served.job is query._served.job
    models, before = renewed._served.models._epochs, query._served.models._epochs
    assert all(models[epoch] is before[epoch] for epoch in models)


GROWING = """
import dataclasses, pathlib, torch
from jobs import images

def growing():
    job, rows = images(), int(pathlib.Path(__file__).with_name("rows.txt").read_text())
    data = job.datasets | {"train": torch.utils.data.Subset(job.datasets["train"], range(rows))}
    return dataclasses.replace(job, datasets=data, ids=job.ids | {"train": job.ids["train"][:rows]})
"""


def test_data_sets_that_grew_with_the_store_are_read_again(folder: Path, tmp_path: Path) -> None:
    from trakstore.features import featurize_job, load_job

    shutil.copy(folder / "jobs.py", tmp_path / "jobs.py")
    (tmp_path / "growing.py").write_text(GROWING)
    (tmp_path / "rows.txt").write_text("30")
    name, place = f"{tmp_path}/growing.py:growing", tmp_path / "run.zarr"
    featurize_job(load_job(name), place, progress=False)
    query = ts.Query(ts.open_store(place), name)
    (tmp_path / "rows.txt").write_text("40")
    featurize_job(replace(load_job(name), append=True), place, progress=False)
    assert not query.is_current()
    renewed = query.renewed()
    assert (query.rows, renewed.rows) == (30, 40)
    asked = {"target": 104, "k": 40}
    assert (
        renewed.ask(**asked).to_dict()
        == ts.Query(ts.open_store(place), name).ask(**asked).to_dict()
    )


def test_an_index_of_fewer_rows_is_told_and_the_next_one_is_taken(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trakstore.serve.current_query import CurrentQuery
    from trakstore.serve.store_watch import StoreWatch

    monkeypatch.setattr(train_index, "LEAST_CANDIDATES", 250)
    store = ts.open_store(place)
    ts.build_index(ts.trak_scores(store), checked=4)
    current = CurrentQuery(ts.Query(store, index=True).prepare())
    watch, before = StoreWatch(current, every=0.01), current.query
    wanted = before.ask(**ASKED).to_dict()
    for epoch in (1, 2):
        append(store, epoch)
    with pytest.raises(ts.TrakStoreError, match="trakstore index"):
        ts.Query(store, index=True)
    watch.look()
    assert current.is_stale and current.query is before
    assert before.ask(**ASKED).to_dict() == wanted  # index, kernel and rows are of one state
    ts.build_index(ts.trak_scores(store), checked=4)
    watch.look()
    assert not current.is_stale
    answer = json.loads(json.dumps(current.query.ask(**ASKED).to_dict()))
    assert answer == fresh(place, index=True) and answer["provenance"]["train_rows"] == 409
