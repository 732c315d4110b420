"""Documents of packs as rows of their own, and collators that write samples into one row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from features.test_sequences import gradient, llama
from torch import Tensor

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.features import CausalLM, Documents, featurize, pad_tokens
from trakstore.features.batches import Batches

IDENTITY = ts.ProjectionSpec("identity")
SIZES = [(4, 3, 2), (9,), (2, 1, 6)]
PLACES = [
    (0, 0, 4),
    (0, 4, 7),
    (0, 7, 9),
    (1, 0, 9),
    (2, 0, 2),
    (2, 3, 9),
]  # not of the single token
IDS = torch.randint(3, 29, (3, 9), generator=torch.Generator().manual_seed(2))


def packs(told: str, **more: Any) -> list[dict[str, Any]]:
    """Packs whose documents are told apart in one of the ways that people have."""
    made = []
    for ids, sizes in zip(IDS, SIZES, strict=True):
        edges = [0, *np.cumsum(sizes).tolist()]
        ways: dict[str, Any] = {
            "seq_lengths": list(sizes),
            "cu_seqlens": torch.tensor(edges),
            "cu_seq_lens_q": edges,
            "seq_idx": [at for at, n in enumerate(sizes) for _ in range(n)],
            "position_ids": torch.cat([torch.arange(n) for n in sizes]),
        }
        made.append({"input_ids": ids.tolist(), told: ways[told], **more})
    return made


def written(where: Path, data: Any, collate: Any = pad_tokens) -> dict[str, Any]:
    out: dict[str, Any] = {"output": CausalLM("loss"), "projector": IDENTITY, "progress": False}
    featurize(llama(), data, where, collate=collate, **out)
    split = ts.open_store(where).split(0, "train")
    return {name: split.column(name).read(0, split.rows) for name in ("features", "loss")}


WAYS = ["seq_lengths", "cu_seqlens", "cu_seq_lens_q", "seq_idx", "position_ids"]


@pytest.mark.parametrize("told", WAYS)
def test_documents_are_found_however_they_are_told_apart(told: str) -> None:
    documents = Documents(packs(told, url="a", labels=IDS[0].tolist()))
    assert documents.places.tolist() == [list(place) for place in PLACES]
    for document, (pack, start, stop) in zip(documents, PLACES, strict=True):
        assert set(document) == {"input_ids", "labels", "url"} and document["url"] == "a"
        assert document["input_ids"].tolist() == IDS[pack, start:stop].tolist()
        assert document["labels"].tolist() == IDS[0, start:stop].tolist()


def test_features_of_documents_add_up_to_those_of_packs(tmp_path: Path) -> None:
    """Each document's by plain autograd; a pack's loss is the mean over the tokens of its documents."""
    data, model = packs("position_ids"), llama()
    rows = written(tmp_path / "documents", Documents(data))
    for i, (pack, start, stop) in enumerate(PLACES):
        ids = IDS[pack, start:stop]
        loss = F.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:])
        wanted = gradient(loss, model)
        assert rows["loss"][i] == pytest.approx(loss.item(), rel=1e-5)
        assert (torch.from_numpy(rows["features"][i]) - wanted).norm() < 1e-5 * wanted.norm()
    whole = written(
        tmp_path / "packs",
        [dict(one, input_ids=torch.tensor(one["input_ids"])) for one in data],
        None,
    )
    for pack in range(3):
        own = [i for i, place in enumerate(PLACES) if place[0] == pack]
        weights = np.array([PLACES[i][2] - PLACES[i][1] - 1.0 for i in own])
        summed = weights @ rows["features"][own] / weights.sum()
        error = np.linalg.norm(summed - whole["features"][pack])
        assert error < 1e-5 * np.linalg.norm(summed)


def test_padding_and_labels_that_ask_for_nothing_make_no_documents() -> None:
    ids = [5, 6, 7, 8, 9, 4, 4, 0, 0]
    pack = {"input_ids": ids, "seq_lengths": [3, 2, 2, 1, 1], "attention_mask": [1] * 7 + [0] * 2}
    assert Documents([pack]).places.tolist() == [[0, 0, 3], [0, 3, 5], [0, 5, 7]]
    one = dict(pack, seq_lengths=[3, 2, 4])  # padding in the last document
    assert Documents([one]).places.tolist() == [[0, 0, 3], [0, 3, 5], [0, 5, 7]]
    labels = [5, -100, -100, -100, 9, 4, -100, -100, -100]
    assert Documents([dict(pack, labels=labels)]).places.tolist() == [[0, 3, 5]]
    with pytest.raises(TrakStoreError, match="no document of the packs has a token to predict"):
        Documents([dict(pack, labels=[-100] * 9)])


def test_positions_of_a_document_that_began_in_another_pack_are_kept(tmp_path: Path) -> None:
    ids, positions = IDS[0], torch.tensor([5, 6, 7, 8, 0, 1, 2, 3, 4])
    documents = Documents([{"input_ids": ids, "position_ids": positions}])
    rows, model = written(tmp_path / "s", documents), llama()
    for i, part in enumerate((slice(0, 4), slice(4, 9))):
        assert documents[i]["position_ids"].tolist() == positions[part].tolist()
        logits = model(ids[None, part], position_ids=positions[None, part]).logits
        loss = F.cross_entropy(logits[0, :-1], ids[part][1:]).item()
        assert rows["loss"][i] == pytest.approx(loss, rel=1e-5)


def test_packs_that_do_not_add_up() -> None:
    with pytest.raises(
        TrakStoreError, match="pack 0 does not tell its documents apart: give one of seq"
    ):
        Documents([{"input_ids": [1, 2]}])
    with pytest.raises(
        TrakStoreError, match=r"pack 1 has 2 input_ids, and seq_lengths of \[3\] divides"
    ):
        Documents(
            [{"input_ids": [1, 2], "seq_lengths": [2]}, {"input_ids": [1, 2], "seq_lengths": [3]}]
        )
    with pytest.raises(TrakStoreError, match="pack 0 has 2 input_ids, and other numbers of labels"):
        Documents([{"input_ids": [1, 2], "labels": [1], "seq_lengths": [2]}])
    with pytest.raises(
        TrakStoreError, match=r"dicts with 'input_ids', one list each, got \['ids'\]"
    ):
        Documents([{"ids": [1, 2]}])
    with pytest.raises(IndexError):
        Documents(packs("seq_idx"))[6]


@pytest.mark.parametrize("flash", [False, True])
def test_a_flattening_collator_gives_each_sample_its_own_row(flash: bool, tmp_path: Path) -> None:
    tf = pytest.importorskip("transformers")
    flattening = tf.DataCollatorWithFlattening(return_flash_attn_kwargs=flash)
    data = [
        {
            "input_ids": IDS[i % 3, : 4 + i].tolist(),
            "labels": [-100, *IDS[i % 3, 1 : 4 + i].tolist()],
        }
        for i in range(5)
    ]
    rows = written(tmp_path / "s", [row | {"text": "a"} for row in data], flattening)
    model = llama()
    for i, row in enumerate(data):
        one = {name: torch.tensor([value]) for name, value in row.items()}
        assert rows["loss"][i] == pytest.approx(model(**one).loss.item(), rel=1e-5)
    # As one row, with a mask of blocks made from positions that begin again, the losses are the same.
    if not flash:
        flat = flattening(data)
        joint = CausalLM("loss", "sum")(model, flat).loss
        counts = np.array([len(row["labels"]) - 1 for row in data])
        assert joint.item() == pytest.approx(float(counts @ rows["loss"]), rel=1e-5)


def test_rows_are_padded_at_the_right() -> None:
    samples: list[dict[str, Any]] = [
        {"input_ids": np.array([5, 6, 7]), "labels": [1, 2, 3], "weights": [0.5, 1.0, 2.0]},
        {
            "input_ids": torch.tensor([8]),
            "labels": [4],
            "weights": [3.0],
            "tags": ["x"],
            "label": 1,
        },
    ]
    batch = pad_tokens(samples)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 0, 0]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[1, 2, 3], [4, -100, -100]],
        "weights": [[0.5, 1, 2], [3, 0, 0]],
    }
    masked = pad_tokens([{"input_ids": [1, 2], "attention_mask": [0, 1]}])
    assert masked["attention_mask"].tolist() == [[0, 1]]
    with pytest.raises(TrakStoreError, match="dicts with 'input_ids', one list each, got list"):
        pad_tokens([[1, 2]])


def test_the_pack_before_is_kept_for_its_next_document() -> None:
    class Counted(list[Any]):
        reads = 0

        def __getitem__(self, index: Any) -> Any:
            type(self).reads += 1
            return super().__getitem__(index)

    documents = Documents(Counted(packs("seq_lengths")))
    before = Counted.reads
    batch = Batches(documents, torch.device("cpu"), pad_tokens).read(0, len(documents))
    assert Counted.reads == before + 3
    assert isinstance(batch["input_ids"], Tensor) and len(batch["input_ids"]) == 6
