"""Bad use of ``trakstore evaluate``: code 2 and one line that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command_lines import check_whole

import trakstore as ts
from trakstore.cli.commands import EVALUATIONS, Command
from trakstore.errors import NotFoundError
from trakstore.evaluation.retraining import retrained_models

TRAINERS = """
import numpy as np
from trakstore.evaluation.retraining import Retrained

def nothing(subsets, seeds):
    return None

def array(subsets, seeds):
    return np.zeros((len(subsets), 7), np.float32)

def raises(subsets, seeds):
    return 1 / 0

def made():
    return 1 / 0

def good(subsets, seeds):
    return Retrained(np.zeros((len(subsets), 7), np.float32))
"""
TRAINED = {
    "nothing": (
        "lds",
        "{trainers}:nothing",
        "gives a Retrained with outputs (models, targets), got",
    ),
    "array": ("counterfactual", "{trainers}:array --size 3", "got ndarray"),
    "raises": ("lds", "{trainers}:raises", "the trainer: ZeroDivisionError: division by zero (tr"),
    "made": ("lds", "{trainers}:made", "trainers.py:made: ZeroDivisionError: division by zero"),
    "lds train": ("lds", "{trainers}:good --train trian", "did you mean 'train'"),
    "lds targets": ("lds", "{trainers}:good --targets tset", "did you mean 'test'"),
    "lds epoch": ("lds", "{trainers}:good --epoch 7", "no epoch 7"),
    "lds share": ("lds", "{trainers}:good --share 2", "a share in (0, 1]"),
    "train": ("counterfactual", "{trainers}:good --train trian", "did you mean 'train'"),
    "size": ("counterfactual", "{trainers}:good --size -4", "sizes must be in 1..39"),
    "name": ("lds", "{trainers}:goood", "did you mean 'good'"),
    "form": ("counterfactual", "trainers", "a trainer is named like trainers.py:name"),
}


@pytest.mark.parametrize("case", TRAINED)
def test_trainers(case: str, run: Any, store: ts.FeatureStore, tmp_path: Path) -> None:
    command, arguments, said = TRAINED[case]
    (tmp_path / "trainers.py").write_text(TRAINERS)
    words = arguments.format(trainers=tmp_path / "trainers.py").split()
    ran = run("evaluate", command, store.location, "--models", "m", "--trainer", *words)
    assert said in ran.error
    with pytest.raises(NotFoundError):  # no model was trained, or at least none is kept
        retrained_models(store, "m")


LISTS = {
    "none": (b"", "none of the 40 samples are named"),
    "all": ("\n".join(map(str, range(40))).encode(), "all of the 40 samples are named"),
    "binary": (b"\xff\xfe\x00", "is not text: give sample ids, one a line"),
    "other": (b"40\n", "train has no sample '40'"),
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_of_wrong_samples(
    case: str, run: Any, store: ts.FeatureStore, tmp_path: Path
) -> None:
    content, said = LISTS[case]
    (tmp_path / "ids.txt").write_bytes(content)
    ran = run("evaluate", "mislabels", store.location, "--wrong", tmp_path / "ids.txt")
    assert said in ran.error
    assert len(ran.error) < 500


def test_stability_of_one_epoch(run: Any, store: ts.FeatureStore) -> None:
    ran = run("evaluate", "stability", store.location, "--epoch", "1")
    assert "got 1 of [(7, 40)]: give other stores of the same splits, or more epochs" in ran.error


def test_checks_of_a_split_that_is_not_there(run: Any, jobs: Path, store: ts.FeatureStore) -> None:
    ran = run("evaluate", "checks", f"{jobs}:small", store.location, "--train", "trian")
    assert "did you mean 'train'" in ran.error


def test_checks_see_that_there_are_other_rows(run: Any, jobs: Path, store: ts.FeatureStore) -> None:
    ran = run("evaluate", "checks", f"{jobs}:small", store.location, "--epoch", "1")
    assert ran.code == 1
    assert "the store has 40 rows of other data" in ran.out


@pytest.mark.parametrize("command", EVALUATIONS, ids=lambda command: command.name)
def test_help_of_evaluations_has_an_example(command: Command, run: Any) -> None:
    ran = run("evaluate", command.name, "--help")
    assert ran.code == 0
    assert f"Example: trakstore evaluate {command.name}" in ran.out
    check_whole(command.example.split()[1:])
    assert "--json" in ran.out
