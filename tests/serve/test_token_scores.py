"""Tokens of the samples that an answer lists: their scores add up to the sample's."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from features.models import Samples, mlp
from features.token_models import (
    SMALL,
    counted,
    gpt2_with_adapters,
    llama,
    padded,
    padded_left,
    texts,
)

import trakstore as ts
from trakstore.errors import MemoryLimitError, SpecMismatchError
from trakstore.features import Job, featurize_job, query_rows
from trakstore.report.sample import Shown
from trakstore.serve import token_scores
from trakstore.serve.question import BadQuestionError, Question


class Words:
    """A tokenizer of words, of which the last stands for the end."""

    all_special_ids = (22,)

    def decode(self, ids: Any, **_: Any) -> str:
        return " ".join(f"w{one}" for one in ids)


@cache
def job(make: Any) -> Job:
    """A model at two epochs, whose train texts end in the token of the end, or not."""
    model = make()
    state = {name: one.detach().clone() for name, one in model.state_dict().items()}
    later = {name: 1.2 * one if one.is_floating_point() else one for name, one in state.items()}
    return Job(
        model,
        {"train": texts(9), "test": texts(3, seed=1)},
        projector=ts.ProjectionSpec("sjlt", dim=48, per_epoch=True),
        checkpoints={1: state, 2: later},
        collate=padded_left if make is llama else padded,
        batch_size=4,
        ids={"train": [f"t{at}" for at in range(9)]},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tokens")
    for make in (llama, gpt2_with_adapters):
        featurize_job(job(make), made / f"{make.__name__}.zarr", progress=False)
    return made


@pytest.mark.parametrize(
    ("make", "method"),
    [(llama, "trak"), (llama, "influence"), (llama, "grad-cos"), (gpt2_with_adapters, "trak")],
)
def test_scores_of_tokens_add_up_to_their_samples(folder: Path, make: Any, method: str) -> None:
    own = job(make)
    query = ts.Query(ts.open_store(folder / f"{make.__name__}.zarr"), own, method=method)
    answer = query.ask(target=0, k=3, tokens=2)
    plain = query.ask(target=0, k=3)
    largest = max(abs(one.score) for one in (*answer.proponents, *answer.opponents))
    for listed, without in (
        (answer.proponents, plain.proponents),
        (answer.opponents, plain.opponents),
    ):
        assert [one.score for one in listed] == [one.score for one in without]
        assert listed[2].tokens is None
        for entry in listed[:2]:
            assert entry.tokens is not None
            places = [at for one in entry.tokens.scored for at in one.tokens]
            assert places == counted(own.datasets["train"][entry.position])
            total = sum(one.score for one in entry.tokens.scored)
            assert abs(total - entry.score) < 1e-5 * largest
            # They are no shares of one number: tokens differ.
            assert len({one.score for one in entry.tokens.scored}) == len(places)


def test_a_tokens_score_is_its_own_gradients(folder: Path) -> None:
    """By hand: the product of the loss's gradient at one token with the sample's asked about."""
    own = job(llama)
    plain = Job(
        own.model, own.datasets, projector=ts.ProjectionSpec("identity"), collate=padded_left
    )
    featurize_job(plain, folder / "identity.zarr", progress=False)
    query = ts.Query(ts.open_store(folder / "identity.zarr"), plain, method="grad-dot")
    entry = query.ask(target=0, k=1, tokens=1).proponents[0]
    model = own.model.eval()
    parameters = [one for one in model.parameters() if one.requires_grad]

    def losses(sample: dict[str, list[int]]) -> list[torch.Tensor]:
        ids = torch.tensor([sample["input_ids"]])
        logits = model(input_ids=ids).logits[0].log_softmax(-1)
        return [-logits[at - 1, ids[0, at]] for at in counted(sample)]

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        parts = torch.autograd.grad(loss, parameters, retain_graph=True)
        return torch.cat([one.ravel() for one in parts])

    asked = losses(own.datasets["test"][0])
    whole = gradient(torch.stack(asked).mean())
    each = losses(own.datasets["train"][entry.position])
    wanted = [float(gradient(one) @ whole) / len(each) for one in each]
    assert entry.tokens is not None
    got = [one.score for one in entry.tokens.scored]
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5 * max(map(abs, wanted)))


def beside_padding(ids: list[int], labels: list[int]) -> dict[str, list[int]]:
    """A sample that carries padding of its own, at the left."""
    kept = [0] * 3 + [1] * len(ids)
    return {"input_ids": [0] * 3 + ids, "labels": [-100] * 3 + labels, "attention_mask": kept}


@pytest.mark.parametrize("output", ["masked_lm", "causal_lm"])
def test_labels_that_are_not_the_input_add_up_behind_padding(output: str, tmp_path: Path) -> None:
    rows = torch.randint(1, 20, (7, 6), generator=torch.Generator().manual_seed(3)).tolist()
    if output == "masked_lm":
        hidden = [[21 if at in (1, 4) else one for at, one in enumerate(ids)] for ids in rows]
        labels = [[one if at in (1, 4) else -100 for at, one in enumerate(ids)] for ids in rows]
        wanted = [1, 4]
    else:
        hidden, labels, wanted = rows, [[*ids[:5], 21] for ids in rows], [1, 2, 3, 4, 5]
    made = [beside_padding(*one) for one in zip(hidden, labels, strict=True)]
    own = Job(
        llama(),
        {"train": made[:5], "test": made[5:]},
        projector=ts.ProjectionSpec("sjlt", dim=32),
        collate=lambda some: {name: torch.tensor([r[name] for r in some]) for name in some[0]},
        output=output,
    )
    featurize_job(own, tmp_path / "s.zarr", progress=False)
    answer = ts.Query(ts.open_store(tmp_path / "s.zarr"), own, render=Words())
    for entry in answer.ask(target=0, k=2, tokens=2).proponents:
        assert entry.tokens is not None
        assert [at for one in entry.tokens.scored for at in one.tokens] == wanted
        total = sum(one.score for one in entry.tokens.scored)
        assert abs(total - entry.score) < 1e-4 * abs(entry.score)
        said = [one.text.strip() for one in entry.tokens.scored]
        assert said == [f"w{made[entry.position]['labels'][3 + at]}" for at in wanted]


def test_texts_come_with_their_scores(folder: Path) -> None:
    store = ts.open_store(folder / "llama.zarr")
    answer = ts.Query(store, job(llama), render=Words()).ask(target=1, k=2, tokens=1)
    first = answer.proponents[0]
    assert first.shown is not None
    sample = job(llama).datasets["train"][first.position]
    assert first.shown.text == Words().decode(sample["input_ids"])
    document = json.loads(json.dumps(answer.to_dict()))["proponents"]
    assert "tokens" not in document[1]
    listed = document[0]["tokens"]
    assert [one["tokens"] for one in listed] == [[at] for at in counted(sample)]
    assert listed[0]["text"].strip() == f"w{sample['input_ids'][counted(sample)[0]]}"
    assert abs(sum(one["score"] for one in listed) - first.score) < 1e-5 * abs(first.score) + 1e-9
    # Without a tokenizer, tokens are their numbers.
    plain = ts.Query(store, job(llama)).ask(target=1, k=2, tokens=1).proponents[0]
    assert plain.shown is not None
    assert plain.shown.text.split() == list(map(str, sample["input_ids"]))


class Collator:
    """A collator with a tokenizer, as those of transformers are."""

    tokenizer = Words()

    def __call__(self, samples: Any) -> Any:
        return padded_left(samples)


def test_what_a_function_does_not_show_stays_hidden(folder: Path) -> None:
    store, own = ts.open_store(folder / "llama.zarr"), replace(job(llama), collate=Collator())
    shown = ts.Query(store, own).ask(target=1, k=2, tokens=1).proponents[0]
    query = ts.Query(store, own, render=lambda _: "[hidden]")
    entry = query.ask(target=1, k=2, tokens=1).proponents[0]
    assert entry.shown is not None and shown.tokens is not None and entry.tokens is not None
    assert entry.shown.text == "[hidden]"
    document = entry.to_dict()
    assert [one["tokens"] for one in document["tokens"]] == [
        list(one.tokens) for one in shown.tokens.scored
    ]
    assert [one["score"] for one in document["tokens"]] == [
        one.score for one in shown.tokens.scored
    ]
    assert shown.shown is not None and "w" in shown.shown.text
    assert all(one.text.startswith("token ") for one in entry.shown.strongest)
    assert "text" not in document["tokens"][0]
    # Their numbers in the vocabulary would tell as much as their texts.
    assert not any(one.text.strip().isdigit() for one in entry.tokens.parts)


def test_an_image_stays_beside_the_text_of_its_tokens(folder: Path) -> None:
    query = ts.Query(ts.open_store(folder / "llama.zarr"), job(llama), render=Words())
    tokens = query.ask(target=1, k=2, tokens=1).proponents[0].tokens
    assert tokens is not None
    shown = tokens.shown(Shown("data:image/png;base64,AA", 3, 2))
    assert (shown.image, shown.width, shown.height) == ("data:image/png;base64,AA", 3, 2)
    assert shown.text == tokens.shown().text != ""


def test_tokens_of_train_rows_that_are_tokens_have_no_scores(tmp_path: Path) -> None:
    own = replace(job(llama), tokens={"train": 1})
    featurize_job(own, tmp_path / "s.zarr", progress=False)
    query = ts.Query(ts.open_store(tmp_path / "s.zarr"), own, train="train~tokens")
    assert query.scores_tokens is False
    with pytest.raises(BadQuestionError, match="tokens have no scores here"):
        query.ask(target=0, k=2, tokens=1)


def test_a_long_question_gives_up_and_lets_others_have_their_turn(folder: Path) -> None:
    own = replace(job(llama), batch_size=1)
    query = ts.Query(ts.open_store(folder / "llama.zarr"), own)
    calls: list[int] = []

    def go_on() -> None:
        assert not query_rows._TURN.locked()
        calls.append(len(calls))

    (answer,) = query.stages(Question(target=0, k=2, tokens=1), stages=1, go_on=go_on)
    lists = (answer.proponents, answer.opponents)
    passes = sum(len(one[0].tokens.scored) * 2 for one in lists if one[0].tokens)
    assert passes >= 8 and len(calls) > passes
    begun = len(calls)

    class Late(Exception):
        """Nobody waits any more."""

    def give_up() -> None:
        calls.append(0)
        if len(calls) == begun + 8:
            raise Late

    with pytest.raises(Late):
        list(query.stages(Question(target=0, k=2, tokens=1), stages=1, go_on=give_up))
    assert len(calls) == begun + 8


def test_a_turn_that_is_taken_again_comes_behind_those_who_wait() -> None:
    order: list[str] = []

    def other() -> None:
        with query_rows.taking_turns():
            order.append("other")

    waits = threading.Thread(target=other)
    with query_rows.taking_turns():
        waits.start()
        while not query_rows._NEXT.locked():
            time.sleep(0.001)
    with query_rows.taking_turns():
        order.append("again")
    waits.join()
    assert order == ["other", "again"]


def test_passes_over_tokens_are_within_the_limits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ts.open_store(folder / "llama.zarr")
    with pytest.raises(MemoryLimitError):
        ts.Query(store, replace(job(llama), memory_limit=10_000)).ask(target=0, k=2, tokens=1)
    monkeypatch.setattr(token_scores, "MOST_PASSES", 5)
    with pytest.raises(BadQuestionError, match="5 at most are made for a list"):
        ts.Query(store, job(llama)).ask(target=0, k=2, tokens=1)


def test_rounded_rows_add_up_to_their_rounding(folder: Path) -> None:
    own = job(llama)
    small = Job(
        own.model,
        own.datasets,
        projector=own.projector,
        collate=padded_left,
        dtype="int8",
        scale="samples",
    )
    featurize_job(small, folder / "int8.zarr", progress=False)
    query = ts.Query(ts.open_store(folder / "int8.zarr"), small)
    entry = query.ask(target=0, k=1, tokens=1).proponents[0]
    assert entry.tokens is not None
    total = sum(one.score for one in entry.tokens.scored)
    assert abs(total - entry.score) < 0.03 * abs(entry.score)


def test_what_cannot_be_asked(folder: Path, tmp_path: Path) -> None:
    store = ts.open_store(folder / "llama.zarr")
    with pytest.raises(BadQuestionError, match="needs the job"):
        ts.Query(store).ask(target=0, k=2, tokens=1)
    query = ts.Query(store, job(llama))
    for count in (21, False, None):
        with pytest.raises(BadQuestionError, match="tokens must be an integer from 0 to 20"):
            query.ask(target=0, k=2, tokens=count)  # type: ignore[arg-type]
    for ids, labels in (([3], [3]), ([3, 4], [-100, -100]), ([3, 4], [4, -100])):
        with pytest.raises(BadQuestionError, match="no token of the sample counts"):
            query.ask({"input_ids": ids, "labels": labels}, k=2)
    images = Job(mlp(), {"train": Samples(6)}, projector=ts.ProjectionSpec("sjlt", dim=8))
    featurize_job(images, tmp_path / "i.zarr", progress=False)
    with pytest.raises(BadQuestionError, match="an output that is made of tokens"):
        ts.Query(ts.open_store(tmp_path / "i.zarr"), images).ask(target=0, k=2, tokens=1)


def test_another_text_than_was_featurized_is_refused(folder: Path) -> None:
    own = job(llama)
    query = ts.Query(ts.open_store(folder / "llama.zarr"), own)
    place = query.ask(target=0, k=1).proponents[0].position
    sample = own.datasets["train"][place]
    kept = list(sample["input_ids"])
    try:
        sample["input_ids"][1:] = [5] * (len(kept) - 1)
        with pytest.raises(SpecMismatchError, match="add up to another row"):
            query.ask(target=0, k=1, tokens=1)
    finally:
        sample["input_ids"][:] = kept


def long_texts(output: Path, **options: Any) -> ts.Query:
    """A store of long texts, and a job that since leaves one token of a text, "t3", out."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**(SMALL | {"max_position_embeddings": 128}))
    )
    rows = torch.randint(1, 20, (6, 120), generator=torch.Generator().manual_seed(3)).tolist()
    train = [{"input_ids": ids, "labels": list(ids)} for ids in rows]
    made = Job(
        model,
        {"train": train, "test": texts(2, seed=1)},
        projector=ts.ProjectionSpec("sjlt", dim=48),
        collate=padded_left,
        ids={"train": [f"t{at}" for at in range(6)]},
        **options,
    )
    featurize_job(made, output, progress=False)
    query = ts.Query(ts.open_store(output), made)
    train[3]["labels"][114] = -100  # no hash of the data sees it any more
    return query


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_text_that_changed_a_little_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any
) -> None:
    query = long_texts(tmp_path / "s.zarr", dtype=dtype)
    at = [one.id for one in query.ask(target=0, k=6).proponents].index("t3")
    with pytest.raises(SpecMismatchError, match="add up to another row") as refused:
        query.ask(target=0, k=6, tokens=at + 1)
    # It is less than a tenth, which was taken for rounding.
    apart = float(str(refused.value).partition("relative difference ")[2].partition(";")[0])
    assert 0.01 < apart < 0.1
    if dtype == "int8":
        return
    # Only that text is refused; and by the sum of its scores, if its row were not looked at.
    assert len(query.ask(target=0, k=6, tokens=1).proponents[0].tokens.scored) == 119
    monkeypatch.setattr("trakstore.report.scored_tokens.parts_apart", lambda *_, **__: 0.0)
    with pytest.raises(SpecMismatchError, match="scores of the tokens add up to"):
        query.ask(target=0, k=6, tokens=at + 1)


def test_the_service_scores_tokens(folder: Path) -> None:
    pytest.importorskip("jinja2")
    pytest.importorskip("httpx")
    starlette = pytest.importorskip("starlette.testclient")
    from trakstore.serve.access import Access
    from trakstore.serve.current_query import CurrentQuery
    from trakstore.serve.limits import Limits
    from trakstore.serve.routes import service

    query = ts.Query(ts.open_store(folder / "llama.zarr"), job(llama), render=Words())
    app = service(CurrentQuery(query), Access("127.0.0.1", None), Limits(), "1.0")
    with starlette.TestClient(app, base_url="http://127.0.0.1:8765") as client:
        assert client.get("/store").json()["tokens"] is True
        listed = client.post("/query", json={"target": 0, "k": 4, "tokens": True}).json()
        scored = [one.get("tokens") for one in listed["proponents"]]
        assert [bool(one) for one in scored] == [True, True, True, False]
        total = sum(one["score"] for one in scored[0])
        assert abs(total - listed["proponents"][0]["score"]) < 1e-5 * abs(total) + 1e-9
        # Texts are not needed for that, and the page has them shaded.
        bare = {"target": 0, "k": 2, "tokens": 1, "samples": False}
        answer = client.post("/query", json=bare).json()["proponents"][0]
        assert answer["tokens"] == [
            {name: value for name, value in one.items() if name != "text"} for one in scored[0]
        ]
        assert "text" not in answer
        panel = client.post("/panel", json={"target": 0, "k": 2, "tokens": 1}).text
        html = json.loads(panel.splitlines()[-1])["html"]
        strongest = max(scored[0], key=lambda one: abs(one["score"]))["text"]
        assert f"<li><code>{strongest}</code>" in html
        assert "tokens that raise the score" in html
        for wrong, status in (("yes", 400), (-1, 400), (99, 422)):
            reply = client.post("/query", json={"target": 0, "k": 2, "tokens": wrong})
            assert reply.status_code == status
            assert "tokens must be" in reply.json()["error"]
