"""Each planted fault is found by its own check, and a sound set-up passes all."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from features.padded_texts import ROWS as TEXTS
from features.padded_texts import Pad, Placed, Texts
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import trakstore as ts
from trakstore.errors import NotFoundError
from trakstore.evaluation.checks import check_setup
from trakstore.evaluation.store_checks import check_rows
from trakstore.evaluation.verdicts import Check
from trakstore.features import Job, featurize_job
from trakstore.features.fingerprint import hashed_rows
from trakstore.methods.sampled_kernel import store_sampled_gram
from trakstore.storage.writer import BlockWriter

ROWS = 120
generator = torch.Generator().manual_seed(0)
inputs = torch.randn(ROWS + 20, 6, generator=generator)
labels = torch.randint(0, 3, (ROWS + 20,), generator=generator)
DATA = {
    "train": TensorDataset(inputs[:ROWS], labels[:ROWS]),
    "test": TensorDataset(inputs[ROWS:], labels[ROWS:]),
}


def network(*more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), *more, nn.Linear(8, 3))


def job_of(model: nn.Module | None = None, **options: Any) -> Job:
    given: dict[str, Any] = {"projector": ts.ProjectionSpec("sjlt", dim=64), **options}
    return Job(model or network(), given.pop("datasets", DATA), **given)


def stored(job: Job, tmp_path: Path) -> Path:
    featurize_job(job, tmp_path / "s.zarr", progress=False, device="cpu")
    return tmp_path / "s.zarr"


def verdicts(job: Job, place: Path, **options: Any) -> dict[str, list[str]]:
    """Names of the checks by verdict, and that each says what it should."""
    found: dict[str, list[str]] = {"pass": [], "warn": [], "fail": []}
    for check in check_setup(job, place, **options):
        found[check.verdict].append(check.name)
        assert check.meaning
        assert bool(check.remedy) == (check.verdict != "pass")
    return found


def test_a_sound_set_up_passes(tmp_path: Path) -> None:
    job = job_of(network(nn.BatchNorm1d(8), nn.Dropout(0.5)))
    job.model.train()  # featurizing and checking are in eval mode by themselves
    found = verdicts(job, stored(job, tmp_path))
    assert found["fail"] == found["warn"] == []
    assert len(found["pass"]) == 2 + 6 + 2 * 5 + 2 * 3 + 1
    assert job.model.training


class AlwaysDropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)  # training=True is the default


def test_a_projection_for_each_epoch_is_looked_at_as_any_other(tmp_path: Path) -> None:
    own = ts.ProjectionSpec("sjlt", dim=64, per_epoch=True)
    states = {epoch: network().state_dict() for epoch in (3, 7)}
    job = job_of(projector=own, checkpoints=states)
    found = verdicts(job, stored(job, tmp_path))
    assert found["fail"] == found["warn"] == [] and "projection keeps angles" in found["pass"]


def test_dropout_left_on(tmp_path: Path) -> None:
    place = stored(job_of(), tmp_path)
    found = verdicts(job_of(network(AlwaysDropping())), place)
    assert "eval mode: nothing random" in found["fail"]


def test_batch_norm_in_train_mode(tmp_path: Path) -> None:
    place = stored(job_of(), tmp_path)
    found = verdicts(job_of(network(nn.BatchNorm1d(8, track_running_stats=False))), place)
    assert found["fail"][0] == "eval mode: samples apart"
    assert "eval mode: nothing random" in found["pass"]


class Shuffled(Dataset[Any]):
    """A loader that shuffles, dressed as a data set."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> Any:
        rows: Iterator[Any] = iter(DataLoader(DATA["train"], shuffle=True))
        x, y = next(rows)
        return x[0], y[0]


def test_a_shuffling_loader(tmp_path: Path) -> None:
    place = stored(job_of(), tmp_path)
    found = list(check_setup(job_of(datasets={**DATA, "train": Shuffled()}), place))
    wrong = [check for check in found if check.verdict == "fail"]
    assert {check.name for check in wrong} == {"samples stay", "same data"}
    assert "read twice" in wrong[0].meaning


def test_a_shuffle_that_stays(tmp_path: Path) -> None:
    """The same samples in another order: equal when read twice, but not those of the store."""
    place = stored(job_of(), tmp_path)
    mixed = TensorDataset(inputs[:ROWS].flip(0), labels[:ROWS].flip(0))
    found = verdicts(job_of(datasets={**DATA, "train": mixed}), place)
    assert found["fail"] == ["same data", "rows computed again"]


def test_how_many_samples_were_compared_is_said(tmp_path: Path) -> None:
    place = stored(job_of(), tmp_path)
    unseen = next(row for row in range(ROWS) if row not in hashed_rows(ROWS))
    said = {row: same_data(changed(row), place) for row in (unseen, ROWS - 1)}
    assert said[unseen].verdict == "pass"  # as it says: a sample of the samples
    for check in said.values():
        assert check.number == len(hashed_rows(ROWS)) < ROWS
        assert check.meaning.startswith(f"of {ROWS} samples compared by hash")
    assert said[ROWS - 1].verdict == "fail"
    assert "differ from those of the store" in said[ROWS - 1].meaning
    assert "equal to" not in said[ROWS - 1].meaning
    longer = same_data({**DATA, "train": DATA["test"]}, place)
    assert (longer.verdict, longer.number) == ("fail", 20)
    assert longer.meaning == f"samples of the job; the store has {ROWS}"


def same_data(datasets: Any, place: Path) -> Check:
    found = check_setup(job_of(datasets=datasets), place)
    return next(one for one in found if (one.name, one.of) == ("same data", "train"))


def changed(row: int) -> Any:
    """The data with another label of a train sample."""
    other = labels[:ROWS].clone()
    other[row] = (other[row] + 1) % 3
    return {**DATA, "train": TensorDataset(inputs[:ROWS], other)}


def test_a_store_without_hashes_was_not_compared(tmp_path: Path) -> None:
    job, place = job_of(), tmp_path / "s.zarr"
    features = np.random.default_rng(0).normal(size=(ROWS, 64)).astype(np.float32)
    store = ts.FeatureStore.create(place, projection=ts.ProjectionSpec("sjlt", dim=64))
    store.write_split(0, "train", features)
    warned = verdicts(job, place)["warn"]
    assert {"same data", "same checkpoint"} <= set(warned)


def test_a_wrong_checkpoint(tmp_path: Path) -> None:
    place, other = stored(job_of(), tmp_path), network()
    torch.manual_seed(9)
    other[0].reset_parameters()  # type: ignore[operator]
    found = verdicts(job_of(other), place)
    assert found["fail"] == ["same checkpoint", "rows computed again"] * 2
    assert verdicts(job_of(checkpoints={7: network().state_dict()}), place)["warn"] == [
        "same checkpoint",
        "same checkpoint",
    ]


def test_frozen_parameters(tmp_path: Path) -> None:
    model = network()
    model[0].weight.requires_grad_(False)
    job = job_of(model)
    found = verdicts(job, stored(job, tmp_path))
    assert "no frozen parameters" in found["warn"]
    assert not found["fail"]
    unfrozen = replace(job, parameters=("0.bias", "2.*"))
    assert "no frozen parameters" in verdicts(unfrozen, tmp_path / "s.zarr")["pass"]


def test_the_frozen_base_of_an_adapter(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(network(), peft.LoraConfig(r=2, target_modules=["0", "2"]))
    # An adapter that is untrained has a B of zeros, and no gradient of A.
    nn.init.normal_(model.base_model.model[0].lora_B["default"].weight)
    nn.init.normal_(model.base_model.model[2].lora_B["default"].weight)
    job = job_of(model)
    place = stored(job, tmp_path)
    assert "no frozen parameters" in verdicts(job, place)["pass"]
    model.base_model.model[0].lora_A["default"].weight.requires_grad_(False)
    assert "no frozen parameters" in verdicts(job, place)["warn"]


class Idle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_unused_parameters(tmp_path: Path) -> None:
    job = job_of(network(Idle()))
    assert "all parameters are used" in verdicts(job, stored(job, tmp_path))["warn"]


def test_duplicated_rows(tmp_path: Path) -> None:
    x, y = inputs[:ROWS].clone(), labels[:ROWS].clone()
    x[100:103], y[100:103] = x[4], y[4]
    job = job_of(datasets={**DATA, "train": TensorDataset(x, y)})
    found = {(check.name, check.where): check for check in check_setup(job, stored(job, tmp_path))}
    check = found["no row stands twice", "train at epoch 0"]
    assert (check.verdict, check.number) == ("warn", 3)
    assert "rows 4 and 100" in check.remedy
    assert found["no row stands twice", "test at epoch 0"].verdict == "pass"


def test_rows_are_copies_up_to_rounding(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(300, 64))
    rows[[40, 7, 250]] = rows[12] * (1 + 1e-7 * np.random.default_rng(1).normal(size=(3, 64)))
    rows[90] = rows[30] * 1.001  # near, and another
    rows[[60, 61]] = 0  # seen by another check
    store = ts.FeatureStore.create(
        tmp_path / "s.zarr", projection=ts.ProjectionSpec("external", dim=64)
    )
    store.write_split(0, "train", rows.astype(np.float32))
    (found,) = (one for one in check_rows(store.split(0, "train")) if "twice" in one.name)
    assert (found.verdict, found.number) == ("warn", 3)
    assert "rows 7 and 12" in found.remedy


def test_a_singular_kernel(tmp_path: Path) -> None:
    few = {**DATA, "train": TensorDataset(inputs[:20], labels[:20])}
    job = job_of(datasets=few)
    place = stored(job, tmp_path)
    assert (
        "kernel" in verdicts(job, place)["warn"]
    )  # 20 rows, 64 dimensions: damped, it can be solved
    assert "kernel" in verdicts(job, place, damping=1e-14)["fail"]


def test_missing_rows_and_zeros(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    features[3] = 0
    place = tmp_path / "s.zarr"
    store = ts.FeatureStore.create(place, projection=ts.ProjectionSpec("identity"))
    store.write_split(0, "train", features)
    found = verdicts(job_of(datasets={"test": DATA["test"]}), place)
    assert "no rows of zeros" in found["warn"]
    marker = sorted((place / "0/train/written").glob("c.*"))[0]
    marker.unlink()
    assert "all rows are there" in verdicts(job_of(datasets={"test": DATA["test"]}), place)["fail"]


def test_epochs_are_looked_at_with_their_own_weights(tmp_path: Path) -> None:
    first, second = network().state_dict(), copy.deepcopy(network().state_dict())
    second["0.weight"] += 1
    place = stored(job_of(checkpoints={1: first, 2: second}), tmp_path)
    assert not verdicts(job_of(checkpoints={1: first, 2: second}), place)["fail"]
    swapped = job_of(checkpoints={1: second, 2: first})
    assert verdicts(swapped, place)["fail"].count("same checkpoint") == 4
    assert verdicts(swapped, place, epochs=[1])["fail"].count("same checkpoint") == 2
    with pytest.raises(NotFoundError, match="no epoch 3"):
        verdicts(swapped, place, epochs=[3])


@pytest.mark.parametrize(
    "kind",
    [{"keep_bits": 5}, {"dtype": "float16"}, {"dtype": "int8"}, {"autocast": "bfloat16"}],
)
def test_narrow_features_are_those_of_the_model(kind: Any, tmp_path: Path) -> None:
    job = job_of(**kind)
    assert not verdicts(job, stored(job, tmp_path))["fail"]


def test_of_8_bits_no_more_is_allowed_than_half_a_step_of_each_number(tmp_path: Path) -> None:
    """A row that is 2% longer is as near as rounding might be, but not in each number."""
    place = stored(job_of(dtype="int8"), tmp_path)
    store = ts.open_store(place)
    for split in ("train", "test"):
        one = store.split(0, split)
        writer = BlockWriter(one)
        for block in range(one.spec.blocks):
            rows = one.spec.block_range(block)
            columns = {name: one.column_as_stored(name).read(*rows) for name in one.columns}
            writer.write(block, {**columns, "row_scale": columns["row_scale"] * np.float32(1.02)})
    assert verdicts(job_of(dtype="int8"), place)["fail"] == ["rows computed again"] * 2


class Words(nn.Module):
    """A language model of 9 tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 9)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.embed(tokens))
        return out


TOKENS = torch.randint(0, 9, (40, 7), generator=generator)
KINDS: dict[str, Any] = {
    "classes": (network, DATA, {"output": "cross_entropy"}),
    "tokens": (Words, {"train": TensorDataset(TOKENS)}, {"output": "causal_lm"}),
    "8 bits": (network, DATA, {"output": "cross_entropy", "dtype": "int8"}),
    "scaled": (network, DATA, {"output": "cross_entropy", "scale": "samples"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_drawn_labels_are_computed_again(kind: str, tmp_path: Path) -> None:
    make, data, how = KINDS[kind]

    def job(model: Any = None, **more: Any) -> Job:
        return job_of(model or make(), datasets=data, sampled=3, draw_seed=5, **{**how, **more})

    place = stored(job(), tmp_path)

    def again(asked: Job) -> dict[str, Check]:
        of = "train~sampled"
        return {one.name: one for one in check_setup(asked, place) if one.of == of}

    found = again(job())
    assert {one.verdict for one in found.values()} <= {"pass"}
    names = {"same data", "same checkpoint", "rows computed again"}
    assert names <= found.keys()
    # A job that says nothing of draws still has the samples.
    assert again(replace(job(), sampled=0))["rows computed again"].verdict == "pass"
    other = {"train": TensorDataset(*(one.flip(0) for one in data["train"].tensors))}
    found = again(replace(job(), datasets={**data, **other}))
    assert {n: found[n].verdict for n in names} == {
        "same data": "fail",
        "same checkpoint": "pass",
        "rows computed again": "fail",
    }


def test_rows_of_tokens_are_compared_with_those_of_the_job(tmp_path: Path) -> None:
    def job(words: Tensor = TOKENS, **more: Any) -> Job:
        data = {"train": TensorDataset(TOKENS[:4]), "test": TensorDataset(words[:9])}
        return job_of(Words(), datasets=data, output="causal_lm", **more)

    def checked(asked: Job) -> dict[str, Check]:
        every = check_setup(asked, place)
        return {one.name: one for one in every if one.of == "test~tokens"}

    place = stored(job(tokens=2), tmp_path)
    # A job that does not ask for rows of tokens still has the samples.
    for same in (job(tokens=2), job(), job(tokens=1)):
        found = checked(same)
        assert {one.verdict for one in found.values()} == {"pass"}
        assert {"same data", "same checkpoint", "rows computed again"} <= found.keys()
        assert found["same data"].meaning.startswith("of 9 samples compared by hash")
    found = checked(job(TOKENS.flip(0)))
    assert found["same data"].verdict == found["rows computed again"].verdict == "fail"
    found = checked(job(TOKENS[:, :4]))
    assert (found["same data"].verdict, found["same data"].number) == ("fail", 9 * 2)
    other = job()
    with torch.no_grad():
        other.model.head.weight.mul_(1.5)
    found = checked(other)
    assert found["same checkpoint"].verdict == found["rows computed again"].verdict == "fail"
    of_classes = job_of(datasets={"test": DATA["test"], "train": DATA["train"]})
    assert "not made of one sequence's tokens" in checked(of_classes)["same data"].meaning


def test_rows_of_other_draws_are_found(tmp_path: Path) -> None:
    """Rows of another seed under this one's name, as a program might write them."""
    how: dict[str, Any] = {"output": "cross_entropy", "sampled": 3}
    place = stored(job_of(draw_seed=5, **how), tmp_path)
    (tmp_path / "other").mkdir()
    other = ts.open_store(stored(job_of(draw_seed=6, **how), tmp_path / "other"))
    split = ts.open_store(place).split(0, "train~sampled")
    for block in range(split.spec.blocks):
        rows, from_other = split.spec.block_range(block), other.split(0, "train~sampled")
        columns = {name: from_other.column(name).read(*rows) for name in split.columns}
        BlockWriter(split).write(block, columns)
    assert verdicts(job_of(draw_seed=5, **how), place)["fail"] == ["rows computed again"]


def test_dropped_rows_and_those_of_lower_precision_are_not_computed_again(tmp_path: Path) -> None:
    how: dict[str, Any] = {"output": "cross_entropy", "sampled": 3}
    place = stored(job_of(**how), tmp_path)
    store = ts.open_store(place)
    store_sampled_gram(store, 0, "train")
    store.drop_rows(0, "train~sampled")
    found = [one for one in check_setup(job_of(**how), place) if one.of == "train~sampled"]
    assert {one.verdict for one in found} == {"pass"}
    assert "rows computed again" not in {one.name for one in found}
    (tmp_path / "half").mkdir()
    half = job_of(autocast="bfloat16", **how)
    found = list(check_setup(half, stored(half, tmp_path / "half")))
    told = [one for one in found if (one.name, one.of) == ("rows computed again", "train~sampled")]
    assert [one.verdict for one in told] == ["warn"]


def test_rows_of_samples_that_padding_changes_are_compared_alone(tmp_path: Path) -> None:
    job = Job(
        Placed(),
        {"train": Texts(range(3, TEXTS, 4))},
        projector=ts.ProjectionSpec("sjlt", dim=64),
        output="causal_lm",
        collate=Pad("left"),
        batch_size=8,
        sampled=1,
    )
    found = verdicts(job, stored(job, tmp_path))
    assert found["fail"] == [] and found["pass"].count("rows computed again") == 2
