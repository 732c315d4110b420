"""Files of epochs that are not there are told with the place that was looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trakstore.errors import NotFoundError, TrakStoreError
from trakstore.features import Job, load_job
from trakstore.features.checkpoints import need_files

JOB = """
import torch
from trakstore.features import Job

digits = Job(torch.nn.Linear(2, 2), {"train": [1]}, checkpoints={1: "weights/one.pt"})
"""


def test_a_file_beside_the_job_is_found_from_its_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    (home / "weights").mkdir(parents=True)
    elsewhere.mkdir()
    (home / "weights/one.pt").touch()
    (home / "jobs.py").write_text(JOB)
    monkeypatch.chdir(elsewhere)
    with pytest.raises(NotFoundError) as caught:
        load_job("../home/jobs.py:digits").check_files([1])
    said = str(caught.value)
    assert "there is no checkpoint file weights/one.pt of epoch 1; correct the job's" in said
    assert f"(looked at {elsewhere}/weights/one.pt)" in said
    assert said.endswith(f"; it is beside jobs.py: run from {home}")
    monkeypatch.chdir(home)
    need_files({1: "weights/one.pt"}, [1])


def test_a_file_that_is_nowhere_has_the_place_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError) as caught:
        need_files({1: "one.pt", 2: tmp_path / "two.pt"}, [1, 2], "jobs.py:digits")
    assert str(caught.value).endswith(f"(looked at {tmp_path}/one.pt)")
    with pytest.raises(NotFoundError) as caught:
        need_files({2: tmp_path / "two.pt"}, [2], "jobs.py:digits")
    assert str(caught.value).endswith("choose the epochs whose files are there")


def test_weights_in_a_list_are_refused() -> None:
    model = torch.nn.Linear(2, 2)
    listed: Any = [model.state_dict()]
    with pytest.raises(
        TrakStoreError, match=r"got a list of 1: name the epoch .* dict\(enumerate\("
    ):
        Job(model, {"train": [1]}, checkpoints=listed)
    assert Job(model, {"train": [1]}, checkpoints=dict(enumerate(listed))).epochs == (0,)
