"""The service over HTTP: answers, refusals in one line, and headers."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from types import SimpleNamespace
from typing import Any

import pytest

import trakstore as ts

pytest.importorskip("starlette")
pytest.importorskip("httpx")
from starlette.testclient import TestClient

from trakstore.errors import TrakStoreError
from trakstore.serve import routes
from trakstore.serve.access import Access
from trakstore.serve.current_query import CurrentQuery
from trakstore.serve.limits import Limits
from trakstore.serve.question import Question
from trakstore.serve.routes import service

LIMITS = Limits(body_bytes=200_000, body_seconds=2, seconds=20, waiting=50, threads=2, letters=5000)
TOKEN = "a-token-of-many-letters"


def client_of(query: ts.Query, limits: Limits = LIMITS, token: str | None = None) -> Any:
    app = service(CurrentQuery(query), Access("127.0.0.1", token), limits, "1.0")
    return TestClient(app, base_url="http://127.0.0.1:8765", raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(query: ts.Query) -> Iterator[Any]:
    with client_of(query) as one:
        yield one


def png(width: int = 8, height: int = 8, mode: str = "L") -> str:
    from PIL import Image

    file = BytesIO()
    Image.new(mode, (width, height), 1).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_an_answer_is_that_of_top_k(client: Any, store: ts.FeatureStore) -> None:
    reply = client.post("/query", json={"target": 104, "k": 6, "epochs": [1, "final"]})
    assert reply.status_code == 200
    document = reply.json()
    scores = ts.trak_scores(store, epochs=[1, "final"]).isel(target=[4])
    for end, order in (("proponents", "largest"), ("opponents", "smallest")):
        top = ts.top_k(scores, 6, order=order)  # type: ignore[arg-type]
        assert [one["id"] for one in document[end]] == top["train"].values[0].tolist()
        assert [one["score"] for one in document[end]] == top["score"].values[0].tolist()
    assert document["target"] == 104
    assert (document["method"], document["epochs"]) == ("trak", [1, "final"])
    assert document["proponents"][0]["image"].startswith("data:image/png;base64,")
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_new_samples_are_answered(client: Any, query: ts.Query) -> None:
    image = {"image": png(), "label": 2, "k": 3, "samples": False}
    document = client.post("/query", json=image).json()
    assert document["asked"]["label"] == 2
    assert set(document["proponents"][0]) >= {"id", "score", "low", "high", "by_epoch"}
    assert "image" not in document["proponents"][0]
    same = client.post("/query", json={**image, "image": f"data:image/png;base64,{png()}"}).json()
    assert same["proponents"] == document["proponents"]
    values = [[[0.1] * 8] * 8]
    sample = client.post("/query", json={"sample": [values, 1], "k": 2, "method": "grad-cos"})
    import torch

    own = query.ask((torch.full((1, 8, 8), 0.1), torch.tensor(1)), k=2, method="grad-cos")
    assert [one["score"] for one in sample.json()["opponents"]] == [
        one.score for one in own.opponents
    ]


def test_an_answer_can_be_streamed(client: Any) -> None:
    reply = client.post("/query", json={"target": 100, "k": 2, "stream": True})
    assert reply.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert lines[-1]["share"] == 1
    assert (
        lines[-1]["proponents"]
        == client.post("/query", json={"target": 100, "k": 2}).json()["proponents"]
    )


def test_what_else_there_is(client: Any) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    about = client.get("/store").json()
    assert about["epochs"] == [1, 2, 3, "final"] and about["takes"] == ["image"]
    page = client.get("/")
    assert "sha256-" in page.headers["content-security-policy"]
    assert "http://" not in page.text and "https://" not in page.text
    described = client.get("/openapi.json").json()
    assert set(described["paths"]) == {
        *("/", "/query", "/store", "/health", "/metrics", "/openapi.json")
    }
    counted = client.get("/metrics").text
    assert 'trakstore_requests_total{path="/health",status="200"} 1' in counted
    assert "trakstore_answer_seconds_count" in counted
    assert client.head("/").status_code == 200


JSON = {"content-type": "application/json"}
DEEP = b"[" * 100_000
HOSTILE: list[tuple[int, bytes | dict[str, Any], dict[str, str]]] = [
    # not JSON, or no object
    *((400, body, JSON) for body in (b"", b"{", b"nonsense", b"\xff\xfe", b"[1]", b"17", b'"a"')),
    *((400, body, JSON) for body in (b"null", DEEP, b'{"a":' * 30_000, b'{"target": 1}{}')),
    *((400, b'{"target": %s}' % one, JSON) for one in (b"NaN", b"Infinity", b"-Infinity", b"01")),
    (400, b'{"target": ' + b"9" * 5000 + b"}", JSON),
    (400, b'{"target": "\\ud800"}', JSON),
    (400, b'{"text": "\\udfff"}', JSON),
    (400, b"\x00" * 100, JSON),
    # a name twice
    *((400, b"{%s}" % one, JSON) for one in (b'"target":100,"target":101', b'"k":1,"k":1')),
    (400, b'{"target": 100, "sample": {"a": 1, "a": 1}}', JSON),
    (431, {"target": 100}, {f"a{at}": "b" for at in range(300)}),
    (431, {"target": 100}, {"a": "b" * 2**16}),
    # other kinds of body
    *((415, b'{"target": 100}', {"content-type": one}) for one in ("text/plain", "", "a/b")),
    (415, b'{"target": 100}', {"content-type": "application/json; charset=utf-16"}),
    (415, b"target=100", {"content-type": "application/x-www-form-urlencoded"}),
    (415, b"", {"content-type": "multipart/form-data; boundary=a"}),
    (415, b'{"target": 100}', {**JSON, "content-encoding": "gzip"}),
    (413, b" " * 300_000, JSON),
    (413, {"text": "a" * 6000}, {}),
    # from elsewhere
    (403, {"target": 100}, {"origin": "https://example.com"}),
    *((403, {"target": 100}, {"origin": one}) for one in ("null", "http://[::1")),
    *((403, {"target": 100}, {"host": one}) for one in ("example.com", "127.0.0.1.example.com")),
    *((403, {"target": 100}, {"host": one}) for one in ("", "[::1", "a b", "8.8.8.8:8765")),
    # fields
    *((422, one, {}) for one in ({}, {"k": 3}, {"target": 1, "text": "a"}, {"split": "test"})),
    *((400, {"target": one}, {}) for one in ([100], {"a": 1}, True, 1.5, "x" * 1001)),
    *(
        (404, {"target": one}, {})
        for one in ("", "../../etc/passwd", "@", "@-1", "@99", -1, 10**30)
    ),
    *(
        (404, {"target": one}, {})
        for one in ("<script>alert(1)</script>", "100; DROP", "%00", "\0")
    ),
    *((404, {"target": one}, {}) for one in ("٣", "1e2", " 100 ", "100.0", "@1_0", "@٣")),
    *((400, {"target": 100, "k": one}, {}) for one in ("5", 1.5, True, [5], {})),
    *((422, {"target": 100, "k": one}, {}) for one in (0, -1, 41, 10**9, -(10**30))),
    *((404, {"target": 100, "epochs": one}, {}) for one in ([9], ["../1"], "none", [1, "x"])),
    *((400, {"target": 100, "epochs": one}, {}) for one in ([[1]], {"a": 1}, [None], True, [1.5])),
    *((422, {"target": 100, "epochs": one}, {}) for one in ([], [1, 1])),
    (400, {"target": 100, "epochs": list(range(2000))}, {}),
    *((404, {"target": 100, "method": one}, {}) for one in ("", "track", "__class__", "../trak")),
    *((400, {"target": 100, "method": one}, {}) for one in (1, ["trak"], "x" * 2000)),
    (404, {"target": "a7"}, {}),  # a train sample, without its split
    *((404, {"target": 100, "split": one}, {}) for one in ("", "tset", "../test", "scores")),
    *((400, {"target": 100, name: 1}, {}) for name in ("samples", "stream")),
    *((400, {"target": 100, name: 1}, {}) for name in ("paths", "__proto__", "job", "<b>")),
    # new samples
    (422, {"text": "words"}, {}),
    *((400, {"text": one}, {}) for one in ("", " \n\t\u3000", 1, ["a"])),
    *(
        (422, {"image": one}, {})
        for one in ("!", "QQ==", "data:,", "file:///etc/passwd", "aGVsbG8=")
    ),
    *((422, {"image": one}, {}) for one in (png(5000, 5000, "1"), png()[:60], "ÿ")),
    *((400, {"image": one}, {}) for one in ("", 1, {"url": "http://127.0.0.1"})),
    *((422, {"image": png(), "label": one}, {}) for one in (3, -1, 10**25, "cat", [1], 0.5, {})),
    (422, {"image": png(), "label": 2**63}, {}),
    (422, {"target": 100, "label": 1}, {}),
    (422, {"sample": [[[[0.1] * 8] * 8], 1], "label": 2}, {}),
    (422, {"sample": [[[[0.1] * 8] * 8], 2**63]}, {}),
    *(
        (422, {"sample": one}, {})
        for one in (1, "a", [], {}, [[], 0], [[[[0.0]]], 0], [[[[1] * 8] * 8], "0"])
    ),
    *((422, {"sample": [[[[one] * 8] * 8], 0]}, {}) for one in (None, "x", {}, 10**400, [])),
    (422, {"sample": [[[[1e300] * 8] * 8], 0]}, {}),
    (422, {"sample": [[[[0.5] * 7 + [True]] * 8], 0]}, {}),
    *((422, {"sample": one}, {}) for one in ([[[[True] * 8] * 8], 0], [[[[0.1] * 8] * 8], True])),
    (422, {"image": png(), "label": True}, {}),
]


def test_there_are_a_hundred_hostile_requests() -> None:
    assert len(HOSTILE) >= 100


def test_each_hostile_request_gets_one_clear_refusal(client: Any, folder: Any) -> None:
    wrong = []
    for status, body, headers in HOSTILE:
        how = {"json": body} if isinstance(body, dict) else {"content": body}
        reply = client.post("/query", headers=headers, **how)
        document = reply.json()
        message = document.get("error", "")
        leaked = [
            one for one in (str(folder), "Traceback", ".py", "/tmp", "/work") if one in message
        ]
        clear = set(document) == {"error"} and 5 < len(message) < 400 and "\n" not in message
        if reply.status_code != status or leaked or not clear:
            wrong.append((status, reply.status_code, str(body)[:80], headers, message))
    assert not wrong, "\n".join(map(str, wrong))
    for kind in ("application/json", "Application/JSON; Charset=UTF-8"):
        reply = client.post("/query", content=b'{"target":100}', headers={"content-type": kind})
        assert reply.status_code == 200


def test_addresses_that_are_not_there(client: Any) -> None:
    for path in ("/docs", "/query/", "/..%2f..%2fetc/passwd", "/static/a", "/%00"):
        reply = client.get(path)
        assert reply.status_code == 404 and set(reply.json()) == {"error"}, path
    for method, path in (("GET", "/query"), ("POST", "/"), ("DELETE", "/store"), ("PUT", "/query")):
        reply = client.request(method, path)
        assert reply.status_code == 405 and set(reply.json()) == {"error"}
    assert 'path="other"' in client.get("/metrics").text
    assert "/docs" not in client.get("/metrics").text


def test_errors_of_the_code_of_others_are_not_told(store: ts.FeatureStore, job_name: str) -> None:
    place = job_name.removesuffix("images")
    with client_of(ts.Query(store, job_name, prepare=f"{place}repeated")) as client:
        reply = client.post("/query", json={"text": "words"})
    assert reply.status_code == 422
    assert "secret" not in reply.text and "jobs.py" not in reply.text


def test_a_fault_is_told_without_its_traceback(
    query: ts.Query, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object, **__: object) -> Any:
        raise RuntimeError("/secret/place")

    monkeypatch.setattr(query, "stages", fault)
    reply = client.post("/query", json={"target": 100})
    assert reply.status_code == 500
    assert reply.json() == {"error": "a fault of the service; its log says more"}


def test_a_token_is_demanded_and_compared(query: ts.Query) -> None:
    with client_of(query, token=TOKEN) as client:
        asked = {"target": 100, "k": 1}
        for given in ({}, {"authorization": "Bearer x"}, {"authorization": f"Basic {TOKEN}"}):
            reply = client.post("/query", json=asked, headers=given)
            assert reply.status_code == 401
            assert reply.headers["www-authenticate"] == "Bearer"
            assert client.get("/store", headers=given).status_code == 401
            assert client.get("/metrics", headers=given).status_code == 401
        # In an address it would stand in logs, and be sent on: it is not looked for there.
        for address in (f"/store?token={TOKEN}", f"/metrics?access_token={TOKEN}"):
            reply = client.get(address)
            assert reply.status_code == 401 and "Authorization" in reply.json()["error"]
        right = {"authorization": f"Bearer {TOKEN}"}
        assert client.post("/query", json=asked, headers=right).status_code == 200
        # Others reach it by a name of its own then.
        elsewhere = {**right, "host": "models.example.com"}
        assert client.post("/query", json=asked, headers=elsewhere).status_code == 200
        assert client.get("/").status_code == client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("host", "token"),
    [("0.0.0.0", None), ("::", None), ("models.example.com", None), ("127.0.0.1", "short")],
)
def test_an_open_address_needs_a_token_that_cannot_be_guessed(host: str, token: str | None) -> None:
    with pytest.raises(TrakStoreError, match="token"):
        Access(host, token)
    assert Access(host, TOKEN).token == TOKEN
    assert Access("127.0.0.1").token is Access("::1").token is Access("localhost").token is None


def test_limits_of_time_and_number(query: ts.Query, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    plain = query.stages

    def slow(*given: Any, **how: Any) -> Any:
        go.wait(10)
        yield from plain(*given, **how)

    monkeypatch.setattr(query, "stages", slow)
    with client_of(query, Limits(seconds=0.3, waiting=2, threads=1)) as client:
        reply = client.post("/query", json={"target": 100})
        assert reply.status_code == 503
        assert "more than 0.3 seconds" in reply.json()["error"]
    with client_of(query, Limits(seconds=20, waiting=2, threads=1)) as client:
        codes: list[int] = []

        def ask() -> None:
            codes.append(client.post("/query", json={"target": 100}).status_code)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for one in threads:
            one.start()
        until = time.monotonic() + 10
        while "trakstore_questions 2" not in client.get("/metrics").text:
            assert time.monotonic() < until
        reply = client.post("/query", json={"target": 100})
        assert reply.status_code == 503 and "too many questions" in reply.json()["error"]
        assert reply.headers["retry-after"] == "5"
        go.set()
        for one in threads:
            one.join()
        assert codes == [200, 200]
        assert "trakstore_questions 0" in client.get("/metrics").text


@pytest.mark.parametrize(
    "version", ["2.3", "2.4"]
)  # in the first a task listens for the reader, too
def test_a_stream_that_is_cut_off_says_so(version: str) -> None:
    async def stages(*_: Any) -> Any:
        yield SimpleNamespace(number=1)
        await asyncio.sleep(60)
        raise AssertionError("it was to be cut off")

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def main() -> None:
        work: Any = SimpleNamespace(stages=stages)
        reply = await routes._streamed(work, Question(target=1), lambda one: {"stage": one.number})
        scope = {"type": "http", "asgi": {"spec_version": version}}
        task = asyncio.create_task(reply(scope, receive, send))
        while len(sent) < 2:
            await asyncio.sleep(0.01)
        task.cancel()  # as uvicorn does when questions have had their time to end
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    lines = [json.loads(one["body"]) for one in sent[1:] if one["body"]]
    assert lines[0] == {"stage": 1}
    assert lines[1:] == [{"error": "the service ends, and the answer was cut off: ask again"}]
