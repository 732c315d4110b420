"""Splits in a store that their rows were not made for: refused when opened, named by verify."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trakstore as ts
from trakstore.errors import SpecMismatchError
from trakstore.spec import OutputSpec, ParameterSpec, ScaleSpec, StoreSpec
from trakstore.storage.checking.verification import verify_store
from trakstore.storage.group_documents import attributes, group_document

SHAPES = (("a.weight", (3, 2)), ("a.bias", (3,)))
SPEC = StoreSpec(
    ts.ProjectionSpec("sjlt", dim=8), OutputSpec("margin", (("x", 1.5),)), ParameterSpec(SHAPES)
)


def build(place: Path, spec: StoreSpec = SPEC) -> Path:
    """Make a store of this spec, with the same given rows in each."""
    rng = np.random.default_rng(0)
    store = ts.FeatureStore.of_spec(place, spec)
    for split, rows in (("train", 12), ("test", 4)):
        features = rng.normal(size=(rows, 8)).astype(np.float32)
        half = np.full(rows, 0.5)
        store.write_split(0, split, features, out_to_loss=half, checkpoint="w", block_rows=4)
    return place


def copied(to: Path, split_of: Path) -> ts.FeatureStore:
    """Put the test split of one store in the place of another's."""
    shutil.rmtree(to / "0/test")
    shutil.copytree(split_of / "0/test", to / "0/test")
    return ts.open_store(to)


def edit(document: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the attributes of a group's document, which gets the checksum of the new ones."""
    known = attributes(document.read_bytes(), "")
    change(known)
    document.write_bytes(group_document(known))


OTHERS: dict[str, StoreSpec] = {
    "seed": StoreSpec(ts.ProjectionSpec("sjlt", dim=8, seed=1), SPEC.output, SPEC.parameters),
    "kind": StoreSpec(ts.ProjectionSpec("rademacher", dim=8), SPEC.output, SPEC.parameters),
    "output": StoreSpec(SPEC.projection, OutputSpec("logit"), SPEC.parameters),
    "option": StoreSpec(SPEC.projection, OutputSpec("margin", (("x", 2.5),)), SPEC.parameters),
    "parameters": StoreSpec(SPEC.projection, SPEC.output, ParameterSpec(SHAPES[:1])),
    "precision": StoreSpec(SPEC.projection, SPEC.output, SPEC.parameters, autocast="bfloat16"),
    "scale": StoreSpec(
        SPEC.projection, SPEC.output, SPEC.parameters, scale=ScaleSpec("given", "ab" * 32)
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_splits_of_other_features_are_refused(tmp_path: Path, name: str) -> None:
    store = copied(build(tmp_path / "a"), build(tmp_path / "b", OTHERS[name]))
    said = "another projection, output, list of parameters, scale or precision"
    with pytest.raises(SpecMismatchError, match=f"test at epoch 0: it is of a store with {said}"):
        ts.trak_scores(store)
    with pytest.raises(SpecMismatchError, match=said):
        build(tmp_path / "a")  # which goes on with splits that are there
    findings = verify_store(tmp_path / "a").findings
    assert [(one.kind, one.key) for one in findings] == [("document", "0/test/zarr.json")]
    assert said in findings[0].message


def test_such_a_split_can_be_dropped_and_written_again(tmp_path: Path) -> None:
    here = build(tmp_path / "a")
    before = np.asarray(ts.trak_scores(ts.open_store(here)))
    store = copied(here, build(tmp_path / "b", OTHERS["seed"]))
    store.drop(0, "test")
    assert store.splits_of(0) == ("train",)
    np.testing.assert_array_equal(np.asarray(ts.trak_scores(ts.open_store(build(here)))), before)
    assert verify_store(here).ok


def test_splits_of_the_same_features_are_taken(tmp_path: Path) -> None:
    # By which patterns parameters were chosen, and how rows are stored, makes no other features.
    chosen = StoreSpec(SPEC.projection, SPEC.output, ParameterSpec(SHAPES, ("a.*",)))
    here = build(tmp_path / "a")
    before = np.asarray(ts.trak_scores(ts.open_store(here)))
    store = copied(here, build(tmp_path / "b", chosen))
    np.testing.assert_array_equal(np.asarray(ts.trak_scores(store)), before)
    assert verify_store(here).ok


def test_splits_of_before_are_taken_as_they_are(tmp_path: Path) -> None:
    here = build(tmp_path / "a")
    before = np.asarray(ts.trak_scores(ts.open_store(here)))
    for split in ("train", "test"):
        edit(here / f"0/{split}/zarr.json", lambda known: known.pop("of_spec"))
    store = ts.open_store(here)
    assert store.split(0, "train").spec.of_spec == ""
    np.testing.assert_array_equal(np.asarray(ts.trak_scores(store)), before)
    # One that was begun before, and that is appended to, stays so.
    rows = {"ids": [100], "out_to_loss": [0.5]}
    assert store.append(0, "train", np.ones((1, 8)), **rows).spec.of_spec == ""
    assert verify_store(here).ok


def test_a_root_of_another_store_is_noticed(tmp_path: Path) -> None:
    """Its checksum is right, and its test vector says nothing of the seed."""
    here = build(tmp_path / "a")
    edit(here / "zarr.json", lambda known: known["trakstore"]["projection"].update(seed=5))
    with pytest.raises(SpecMismatchError, match="the store's own document was replaced"):
        ts.trak_scores(ts.open_store(here))
    findings = verify_store(here).findings
    assert {(one.kind, one.epoch, one.split) for one in findings} == {
        ("document", 0, "test"),
        ("document", 0, "train"),
    }


def test_the_digest_is_the_published_one(tmp_path: Path) -> None:
    """As FORMAT.md has it, from the root's document alone."""
    place = build(tmp_path / "a", OTHERS["precision"])
    root = json.loads((place / "zarr.json").read_text())["attributes"]["trakstore"]
    root["projection"].pop("test_vector")
    wanted = {name: root.get(name) for name in ("projection", "output", "autocast", "scale")}
    wanted["shapes"] = root["parameters"]["shapes"]
    text = json.dumps(wanted, sort_keys=True, separators=(",", ":"))
    stored = ts.open_store(place).split(0, "test").spec.of_spec
    assert stored == hashlib.sha256(text.encode()).hexdigest()
    # Features that came from elsewhere say of output and parameters that nothing is known.
    own = StoreSpec(ts.ProjectionSpec("external", dim=8)).rows_digest
    projection = (
        '"projection":{"dim":8,"kind":"external","s":1,"seed":null,"side":null,"version":1}'
    )
    plain = f'{{"autocast":null,"output":null,{projection},"scale":null,"shapes":null}}'
    assert own == hashlib.sha256(plain.encode()).hexdigest()
