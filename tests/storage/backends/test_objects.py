from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
import zarr
from fault_proxy import Fault, FaultProxy, fault_proxy, share_of_requests
from obstore.store import S3Store
from s3 import clean

import trakstore as ts
from trakstore.errors import DamagedError, LocationError
from trakstore.storage.backends import objects
from trakstore.storage.backends.location import open_location
from trakstore.storage.backends.objects import SinglePutStore

SPEC = ts.ProjectionSpec("sjlt", dim=8)


def rows_of(n: int, dim: int = 8, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


@pytest.fixture
def faults(server: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a proxy to the server, with short timeouts and rests; the environment leads to it."""
    monkeypatch.setattr(objects, "TIMEOUTS", {"timeout": timedelta(seconds=0.5)})
    quick = {"backoff": {"init_backoff": timedelta(milliseconds=10)}, "max_retries": 3}
    monkeypatch.setattr(objects, "REST", 0.01)
    monkeypatch.setattr(objects, "RETRIES", quick)
    monkeypatch.setattr(objects, "RETRIES_AT_OPENING", quick)

    @contextmanager
    def run(choose: Any, delay: float = 0.7) -> Iterator[FaultProxy]:
        with fault_proxy(server, choose, delay) as proxy, pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_ENDPOINT_URL", proxy.url)
            yield proxy

    return run


def test_what_is_written_is_read(bucket: str) -> None:
    X, q, ids = rows_of(50), np.linspace(0, 1, 50), [f"row {i}" for i in range(50)]
    store = ts.FeatureStore.create(f"{bucket}/a/run.zarr", projection=SPEC)
    split = store.write_split(10, "train", X, out_to_loss=q, ids=ids, block_rows=7)
    store.write_split("final", "test", X[:5])
    opened = ts.open_store(f"{bucket}/a/run.zarr/")
    assert opened.epochs == (10, "final")
    assert opened.splits == ("test", "train") and opened.splits_of(10) == ("train",)
    assert all(status.complete for status in opened.status())
    got = opened.split(10, "train").to_xarray().compute()
    np.testing.assert_array_equal(got.features, X)
    np.testing.assert_array_equal(got.out_to_loss, q.astype(np.float32))
    assert got.sample_id.values.tolist() == ids
    np.testing.assert_array_equal(split.column("features").read(13, 31), X[13:31])


def test_plain_zarr_opens_it(bucket: str) -> None:
    X = rows_of(20)
    ts.FeatureStore.create(f"{bucket}/run.zarr", projection=SPEC).write_split(0, "train", X)
    client: Any = {"allow_http": True}
    plain = zarr.storage.ObjectStore(S3Store.from_url(f"{bucket}/run.zarr", client_options=client))
    group = zarr.open_group(plain, mode="r", use_consolidated=False)
    np.testing.assert_array_equal(group["0/train/features"][:], X)
    np.testing.assert_array_equal(ts.open_store(plain).features(0, "train"), X)
    assert isinstance(open_location(plain).store, SinglePutStore)


def test_names_are_the_last_part_only(bucket: str) -> None:
    place = open_location(f"{bucket}/deep/er")
    place.put(dict.fromkeys(("zarr.json", "a/zarr.json", "a/b/c.0.0", "a/b/c.1.0", "ab/q"), b"x"))
    assert place.names("") == ["a", "ab", "zarr.json"]
    assert place.names("a") == ["b", "zarr.json"]
    assert place.names("a/b") == ["c.0.0", "c.1.0"]
    assert place.names("nothing") == []
    whole = open_location(bucket)
    assert whole.names("") == ["deep"] and whole.names("deep/er/a/b") == ["c.0.0", "c.1.0"]
    assert whole.get("deep/er/a/zarr.json") == b"x" and whole.get("deep/er/a") is None


@pytest.mark.slow
def test_more_names_than_a_page_holds(bucket: str) -> None:
    place = open_location(bucket)
    place.put({f"w/c.{i}.0": b"" for i in range(1001)})
    assert len(place.names("w")) == 1001


def test_a_stopped_write_is_resumed(bucket: str) -> None:
    X = rows_of(40)
    store = ts.FeatureStore.create(f"{bucket}/run.zarr", projection=SPEC)
    bad = X.copy()
    bad[25] = np.nan
    with pytest.raises(ValueError, match="row"):
        store.write_split(0, "train", bad, block_rows=10)
    assert store.status()[0].missing == ((20, 40),)
    store.write_split(0, "train", X, block_rows=10)
    np.testing.assert_array_equal(store.features(0, "train"), X)


def test_rows_are_appended_masked_and_dropped(bucket: str) -> None:
    X = rows_of(33)
    store = ts.FeatureStore.create(f"{bucket}/run.zarr", projection=SPEC)
    store.write_split(0, "train", X[:20], block_rows=7)
    store.append(0, "train", X[20:], ids=range(20, 33))
    np.testing.assert_array_equal(store.features(0, "train"), X)
    assert store.mask("train", [3, 30]) == 2
    store.write_split(0, "test", X[:5])
    store.drop(0, "train")
    assert store.splits == ("test",)
    assert open_location(f"{bucket}/run.zarr/0").names("train") == []
    np.testing.assert_array_equal(store.features(0, "test"), X[:5])


def test_a_chunk_is_one_put_and_one_get(
    bucket: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    X = rows_of(2048, 2048)
    # Not through `faults`: a chunk that takes longer than its short timeout is put again.
    with fault_proxy(server, lambda _: None) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        store = ts.FeatureStore.create(
            f"{bucket}/run.zarr", projection=ts.ProjectionSpec("sjlt", dim=2048)
        )
        split = store.write_split(0, "train", X, block_rows=2048)
        chunks = [r for r in proxy.requests if "/features/c/" in r.path]
        puts = [r.path for r in chunks if r.method == "PUT"]
        assert len(puts) == len(set(puts)) == 2048 // split.spec.chunk_rows
        assert all(r.size > 5_000_000 for r in chunks if r.method == "PUT")
        assert not any("upload" in r.path for r in proxy.requests)
        column = split.column("features")
        column.read(0, 1)
        before = len(proxy.requests)
        np.testing.assert_array_equal(column.read(5, 9), X[5:9])
        assert [r.method for r in proxy.requests[before:]] == ["GET"]


def test_a_missing_chunk_and_other_bytes_are_damage(bucket: str) -> None:
    store = ts.FeatureStore.create(f"{bucket}/run.zarr", projection=SPEC)
    split = store.write_split(0, "train", rows_of(20), block_rows=10)
    store.location.put({"0/train/features/c/0/0": b"x" * 324})
    with pytest.raises(DamagedError, match="damaged"):
        split.column("features").read(0, 5)
    raw: Any = store.location.store
    obstore.delete(raw.store, "0/train/features/c/1/0")
    with pytest.raises(DamagedError, match="missing though"):
        split.column("features").read(12, 15)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://no-such-bucket/run.zarr", "there is no bucket for s3://no-such-bucket/run.zarr"),
        ("s3://", "s3://bucket/prefix"),
        ("s3://key:secret@bucket/run.zarr", "never from it"),
        ("s3://bucket/run.zarr?secret=1", "never from it"),
        ("s3://bucket/a//b", "empty path segment"),
        ("ftp://bucket/run.zarr", "ftp:// is not known"),
    ],
)
@pytest.mark.usefixtures("bucket")
def test_urls_that_cannot_be_opened(url: str, message: str) -> None:
    for use in (ts.open_store, lambda u: ts.FeatureStore.create(u, projection=SPEC)):
        with pytest.raises(LocationError, match=message) as caught:
            use(url)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
        assert "key:secret" not in str(caught.value)


def test_an_empty_prefix_is_no_store(bucket: str) -> None:
    with pytest.raises(LocationError, match=f"there is no store at {bucket}/run.zarr"):
        ts.open_store(f"{bucket}/run.zarr")
    open_location(bucket).put({"thesis.txt": b"mine"})
    with pytest.raises(LocationError, match="not empty and is not a store"):
        ts.FeatureStore.create(bucket, projection=SPEC)


def test_denied_access_is_said_so(bucket: str, faults: Any) -> None:
    with (
        faults(lambda _: "denied"),
        pytest.raises(LocationError, match=r"access to .* denied .AccessDenied: Access Denied"),
    ):
        ts.open_store(f"{bucket}/run.zarr")


def test_denied_writes_are_said_so(bucket: str, faults: Any) -> None:
    with faults(lambda r: "denied" if r.method == "PUT" else None):
        with pytest.raises(LocationError, match="was denied"):
            ts.FeatureStore.create(f"{bucket}/run.zarr", projection=SPEC)
        assert open_location(f"{bucket}/run.zarr").names("") == []


def test_an_endpoint_where_nobody_is(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(objects, "RETRIES_AT_OPENING", {"max_retries": 1})
    with pytest.raises(LocationError, match=r"cannot be used .*refused.*; check the network"):
        ts.open_store(f"{bucket}/run.zarr")


def test_without_obstore_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trakstore.storage.backends.objects", None)
    monkeypatch.delattr("trakstore.storage.backends.objects", raising=False)
    with pytest.raises(LocationError, match=r'pip install "trakstore\[cloud\]"'):
        ts.open_store("s3://bucket/run.zarr")


def test_without_credentials_it_says_so(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(LocationError, match=r"no credentials for .* set AWS_ACCESS_KEY_ID"):
        ts.open_store(f"{bucket}/run.zarr")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(LocationError, match=r"no credentials for .*\(nobody\)"):
        ts.open_store(f"{bucket}/run.zarr")
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setitem(sys.modules, "obstore.auth.boto3", None)
    monkeypatch.setattr(objects, "RETRIES_AT_OPENING", {"max_retries": 0})
    with pytest.raises(LocationError, match="are read if boto3 is installed"):
        ts.open_store(f"{bucket}/run.zarr")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "half")
    with pytest.raises(LocationError, match=r"no credentials for .* Missing AccessKeyId"):
        ts.open_store(f"{bucket}/run.zarr")


def test_a_profile_in_the_shared_files(
    bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shared = tmp_path / "credentials"
    shared.write_text("[lab]\naws_access_key_id = of-the-lab\naws_secret_access_key = dark\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(shared))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = ts.FeatureStore.create(f"{bucket}/run.zarr", projection=SPEC)
    store.write_split(0, "train", rows_of(10))
    inside: Any = store.location.store
    for thing in (store, store.features(0, "train"), inside, inside.with_read_only(True)):
        assert inside.store.credential_provider()["access_key_id"] == "of-the-lab"
        data = pickle.dumps(thing)
        assert b"dark" not in data and b"of-the-lab" not in data
    assert pickle.loads(pickle.dumps(inside)) is inside  # noqa: S301
    assert pickle.loads(pickle.dumps(inside.with_read_only(True))).read_only  # noqa: S301


def test_it_pickles_as_its_url_and_opens_once(bucket: str) -> None:
    store = ts.FeatureStore.create(f"{bucket}/run.zarr", projection=SPEC)
    store.write_split(0, "train", rows_of(10))
    for thing in (store, store.location, store.split(0, "train"), store.features(0, "train")):
        data = pickle.dumps(thing)
        assert b"dummy" not in data and bucket.encode() in data
    again = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert again == store and again.location.store is store.location.store
    assert open_location(f"{bucket}/run.zarr").store is store.location.store


def test_new_credentials_in_the_environment_are_taken(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_location(bucket).store
    monkeypatch.setenv("AWS_SESSION_TOKEN", "renewed")
    assert open_location(bucket).store is not before


@pytest.mark.filterwarnings("ignore:This process")  # forks although it has threads: Python 3.12
def test_a_forked_process_is_told_instead_of_waiting_for_ever(bucket: str) -> None:
    store = ts.FeatureStore.create(f"{bucket}/run.zarr", projection=SPEC)
    child = os.fork()
    if not child:
        signal.alarm(20)
        try:
            print(store.status())
        except LocationError as error:
            os._exit(7 if "spawn" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert store.epochs == ()


def test_of_conditional_writes_at_once_one_wins(bucket: str) -> None:
    place = open_location(bucket)
    with ThreadPoolExecutor(8) as pool:
        for race in range(10):
            write = [(f"race/{race}", f"writer {i}".encode()) for i in range(8)]
            settled = set(pool.map(lambda one: place.put_if_absent(*one), write))
            assert settled == {place.get(f"race/{race}")}


def test_a_service_without_conditional_writes_is_named(bucket: str, faults: Any) -> None:
    """At once, as long as nothing is written that others might write as well."""
    with (
        faults(lambda r: "lacking" if r.create else None) as proxy,
        pytest.raises(LocationError, match=r"lacks a request .*NotImplemented.*If-None-Match"),
    ):
        ts.FeatureStore.create(f"{bucket}/run.zarr", projection=SPEC)
    assert proxy.injected["lacking"] <= 4
    assert open_location(f"{bucket}/run.zarr").names("") == []


@pytest.mark.parametrize("fault", ["lost", "late", "500", "truncated"])
def test_a_conditional_write_whose_reply_is_lost(bucket: str, faults: Any, fault: Fault) -> None:
    writes = iter([fault])
    with faults(lambda r: next(writes, None) if r.create else None) as proxy:
        assert open_location(bucket).put_if_absent("zarr.json", b"mine") == b"mine"
    creates = [r for r in proxy.requests if r.create]
    assert len(creates) == 2 and proxy.injected == {fault: 1}


def test_a_conditional_write_that_all_lose_is_tried_again(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 may answer 409 to several at once, which is taken for a key that is there."""
    place, real, calls = open_location(bucket), SinglePutStore.set_if_not_exists, []

    async def conflict_first(store: SinglePutStore, key: str, value: Any) -> None:
        calls.append(key)
        if len(calls) > 1:
            await real(store, key, value)

    monkeypatch.setattr(SinglePutStore, "set_if_not_exists", conflict_first)
    assert place.put_if_absent("zarr.json", b"mine") == b"mine" and len(calls) == 2


def test_a_listing_that_breaks_off_at_opening(bucket: str, faults: Any) -> None:
    listings: Iterator[Fault] = iter(["truncated", "truncated", "late"])
    with faults(lambda _: next(listings, None)) as proxy:
        assert open_location(f"{bucket}/run.zarr").names("") == []
    assert proxy.injected == {"truncated": 2, "late": 1}


def test_a_long_listing_goes_on_behind_the_page_that_broke_off(
    bucket: str, faults: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "PAGE", 2)
    keys = [f"a/{i}/{j}" for i in range(3) for j in range(3)]
    open_location(f"{bucket}/run.zarr").put(dict.fromkeys([*keys, "b/0"], b"x"))
    broken = iter([False, True, True, False, True] + [False] * 99)
    with faults(lambda r: "truncated" if "list" in r.path and next(broken) else None) as proxy:
        place = open_location(f"{bucket}/run.zarr")  # the first listing
        assert place.find("a", lambda _: True) == keys
        place.delete_folder("a")
        assert place.find("a", lambda _: True) == []
    assert proxy.injected == {"truncated": 3}


def test_a_value_that_is_too_large_is_not_read(bucket: str) -> None:
    place = open_location(bucket)
    place.put({"zarr.json": b" " * 9_000_000, "a": b"x" * 10})
    with pytest.raises(DamagedError, match=r"zarr.json has 9,000,000 bytes; at most"):
        place.get("zarr.json")
    with pytest.raises(DamagedError, match=r"a has 10 bytes; at most 9 can be right"):
        place.get("a", 9)
    assert place.get("a", 10) == b"x" * 10


def test_networks_that_stay_down_are_neither_damage_nor_missing(
    bucket: str, faults: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, state = rows_of(20), {"fault": None}
    monkeypatch.setattr(objects, "ATTEMPTS", 2)
    monkeypatch.setattr(objects, "RETRIES", {**objects.RETRIES, "max_retries": 1})
    with faults(lambda _: state["fault"]):
        store = ts.FeatureStore.create(f"{bucket}/run.zarr", projection=SPEC)
        split = store.write_split(0, "train", X, block_rows=10)
        column = split.column("features")
        for fault in ("500", "503", "reset", "late", "truncated", "denied"):
            state["fault"] = fault  # type: ignore[assignment]
            uses: list[Callable[[], object]] = [
                lambda: column.read(0, 20),
                lambda: store.status(),
                lambda: store.features(0, "train").compute(),
                lambda: split.status(),
                lambda: store.write_split(1, "train", X),
            ]
            for use in uses[: 2 if fault == "late" else None]:
                with pytest.raises(LocationError, match=f"{bucket}.* (cannot be used|denied)"):
                    use()
        state["fault"] = None
        np.testing.assert_array_equal(column.read(0, 20), X)


def test_one_fault_anywhere_changes_nothing(bucket: str, faults: Any) -> None:
    X = rows_of(60)
    with faults(share_of_requests(0.2, seed=5)) as proxy:
        store = ts.FeatureStore.create(f"{bucket}/run.zarr", projection=SPEC)
        store.write_split(0, "train", X, block_rows=10)
        np.testing.assert_array_equal(store.features(0, "train"), X)
    assert sum(proxy.injected.values()) > 10 and len(proxy.injected) >= 5
    np.testing.assert_array_equal(ts.open_store(f"{bucket}/run.zarr").features(0, "train"), X)


CREATE = """
import sys
import numpy as np
import trakstore as ts
sys.stdin.readline()
spec = ts.ProjectionSpec("sjlt", dim=8)
store = ts.FeatureStore.create(sys.argv[1], projection=spec)
X = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
store.write_split(0, "train", X, block_rows=5)
print(store.location.get("0/train/zarr.json").hex())
"""


@pytest.mark.slow
def test_four_processes_create_and_write_one_store(bucket: str) -> None:
    command = [sys.executable, "-W", "error", "-c", CREATE, f"{bucket}/run.zarr"]
    made: list[subprocess.Popen[str]] = [
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for one in made:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    said, errors = zip(*(one.communicate(timeout=120) for one in made), strict=True)
    assert [one.returncode for one in made] == [0] * 4, errors
    assert len(set(said)) == 1
    X = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    np.testing.assert_array_equal(ts.open_store(f"{bucket}/run.zarr").features(0, "train"), X)


def test_google_and_azure_urls(server: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto answers Google's XML interface too, as far as it is that of S3."""
    monkeypatch.setenv("GOOGLE_BASE_URL", server)
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "dummy")
    url = bucket.replace("s3://", "gs://")
    store = ts.FeatureStore.create(f"{url}/run.zarr", projection=SPEC)
    store.write_split(0, "train", rows_of(20))
    np.testing.assert_array_equal(
        ts.open_store(f"{url}/run.zarr").features(0, "train"), rows_of(20)
    )
    with pytest.raises(LocationError, match="Account must be specified"):
        ts.open_store("az://container/run.zarr")


def test_tests_never_see_real_credentials(bucket: str) -> None:
    assert bucket and os.environ["AWS_ACCESS_KEY_ID"] == "dummy-key"
    assert not any("169.254" in text for text in clean(os.environ).values())
    assert json.dumps(clean(os.environ)).count("dummy-") == 0
