"""Pictures hold what they were given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from trakstore.errors import TrakStoreError

matplotlib = pytest.importorskip("matplotlib")

from matplotlib.axes import Axes  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.image import imread  # noqa: E402

from trakstore.report.top_images import HARMED, HELPED, draw_top_images  # noqa: E402


def lists(scores: Any) -> xr.Dataset:
    """Lists of these scores, whose samples are 0, 1, ... with the ids 100, 101, ..."""
    values = np.array(scores)
    position, dims = np.arange(values.size).reshape(values.shape), ("target", "rank")
    columns = {"score": values, "position": position, "train": position + 100}
    ids = ("target", [f"test {at}" for at in range(len(values))])
    return xr.Dataset({name: (dims, one) for name, one in columns.items()}, {"target_id": ids})


def draw(path: Path, labels: Any, train_labels: Any) -> Path:
    rng = np.random.default_rng(0)
    images, train = rng.random((2, 5, 6)), rng.random((6, 5, 6))
    ups, downs = lists([[0.4412, 0.1, 0.0625], [0.03, 0.02, 0.01]]), lists(-np.ones((2, 3)) / 20)
    return draw_top_images(path, images, labels, train, train_labels, ups, downs, title="a title")


def has(pixels: Any, colour: str) -> bool:
    return bool((np.abs(pixels - to_rgb(colour)).max(axis=-1) < 0.01).sum() > 500)


def test_colours_say_what_helped_and_what_harmed(tmp_path: Path) -> None:
    for train_labels in (np.ones(6, int), np.zeros(6, int)):
        pixels = imread(draw(tmp_path / "a.png", np.array([1, 1]), train_labels))[..., :3]
        # The target and the helpful three take 4.4 of 7.65 widths of an image.
        left, right = np.split(pixels, [round(pixels.shape[1] * 4.5 / 7.65)], axis=1)
        assert has(left, HELPED) and not has(left, HARMED)
        assert has(right, HARMED) and not has(right, HELPED)
        assert pixels.std() > 0.1


def drawn(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[Axes]]:
    """Axes of the picture, in its lines: the target, three that helped, three that harmed."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    draw(path, np.array([1, 0]), np.array([1, 0, 1, 0, 0, 1]))
    axes = figures[0].axes
    return [axes[:7], axes[7:]]


def test_a_sample_has_its_class_score_and_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = drawn(tmp_path / "a.png", monkeypatch)
    texts = [[one.get_text() for one in axis.texts] for axis in (*first, *second)]
    assert texts[0] == ["1", "", "id test 0"]
    assert texts[1:4] == [
        ["1", "+0.441", "id 100"],
        ["0", "+0.100", "id 101"],
        ["1", "+0.062", "id 102"],
    ]
    # All scores of a picture have one format.
    assert [one[1] for one in texts[8:11]] == ["+0.030", "+0.020", "+0.010"]
    assert {one[1] for one in (*texts[4:7], *texts[11:])} == {"−0.050"}


def test_frames_say_the_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = drawn(tmp_path / "a.png", monkeypatch)
    whole = [
        [{one.get_linestyle() for one in axis.spines.values()} == {"solid"} for axis in line]
        for line in lines
    ]
    same = [
        [True, False, True],
        [True, True, False],
    ]  # samples 0 to 2 of class 1, 3 to 5 of class 0
    assert whole == [[True, *one, *one] for one in same]


def test_it_leaves_pyplot_alone(tmp_path: Path) -> None:
    backend = matplotlib.get_backend(auto_select=False)
    draw(tmp_path / "a.png", np.array([0, 1]), np.arange(6) % 2)
    assert matplotlib.get_backend(auto_select=False) == backend


def test_lists_must_be_of_the_targets(tmp_path: Path) -> None:
    with pytest.raises(TrakStoreError, match="as many lists as targets"):
        draw(tmp_path / "a.png", np.array([0]), np.arange(6))
    assert not (tmp_path / "a.png").exists()
