"""Pictures hold what they were given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from trakstore.errors import TrakStoreError

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.colors import to_rgb  # noqa: E402
from matplotlib.image import imread  # noqa: E402

from trakstore.report.top_images import OTHER, SAME, draw_top_images  # noqa: E402


def lists(targets: int, ranks: int) -> xr.Dataset:
    position = np.arange(targets * ranks).reshape(targets, ranks)
    dims = ("target", "rank")
    return xr.Dataset({"score": (dims, position / 7), "position": (dims, position)})


def draw(path: Path, labels: Any, train_labels: Any, targets: int = 2) -> Path:
    rng = np.random.default_rng(0)
    images, train = rng.random((targets, 5, 6)), rng.random((targets * 3, 5, 6))
    top = lists(targets, 3)
    return draw_top_images(path, images, labels, train, train_labels, top, top, title="a title")


def has(path: Path, colour: str) -> bool:
    pixels = imread(path)[..., :3]
    return bool((np.abs(pixels - to_rgb(colour)).max(axis=-1) < 0.01).sum() > 500)


def test_classes_have_their_colours(tmp_path: Path) -> None:
    own = np.array([1, 1])
    same = draw(tmp_path / "same.png", own, np.ones(6, int))
    other = draw(tmp_path / "other.png", own, np.zeros(6, int))
    assert has(same, SAME)
    assert has(other, OTHER)
    assert imread(same)[..., :3].std() > 0.1


def test_it_leaves_pyplot_alone(tmp_path: Path) -> None:
    backend = matplotlib.get_backend(auto_select=False)
    draw(tmp_path / "a.png", np.array([0, 1]), np.arange(6) % 2)
    assert matplotlib.get_backend(auto_select=False) == backend


def test_lists_must_be_of_the_targets(tmp_path: Path) -> None:
    with pytest.raises(TrakStoreError, match="as many lists as targets"):
        draw(tmp_path / "a.png", np.array([0]), np.arange(6))
    assert not (tmp_path / "a.png").exists()
