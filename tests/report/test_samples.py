"""Samples of any kind become an image, a text or the cells of a row."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import pytest
import torch

Image = pytest.importorskip("PIL.Image")

from trakstore.report.sample import Shown, show_sample  # noqa: E402


def pixels(shown: Shown) -> np.ndarray:
    kind, _, data = shown.image.partition(";base64,")
    assert kind in ("data:image/png", "data:image/jpeg")
    found = np.asarray(Image.open(BytesIO(base64.b64decode(data))))
    assert (shown.height, shown.width) == found.shape[:2]
    return found


def test_images_keep_their_pixels() -> None:
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (8, 9), dtype=np.uint8)
    np.testing.assert_array_equal(pixels(show_sample(gray)), gray)
    np.testing.assert_array_equal(pixels(show_sample((torch.tensor(gray)[None], 3))), gray)
    np.testing.assert_array_equal(pixels(show_sample(gray / 255)), gray)
    colour = rng.integers(0, 256, (3, 8, 9), dtype=np.uint8)
    last = np.moveaxis(colour, 0, -1)
    for one in (colour, last, Image.fromarray(last)):
        np.testing.assert_array_equal(pixels(show_sample(one)), last)
    normalised = torch.tensor(gray, dtype=torch.float32, requires_grad=True) / 50 - 2
    found = pixels(show_sample(normalised)).astype(float)
    wanted = (gray - gray.min()) / (gray.max() - gray.min()) * 255.0
    np.testing.assert_allclose(found, wanted, atol=1)


@pytest.mark.parametrize("shape", [(0, 3), (0,), (3, 0, 4)])
def test_of_an_image_without_pixels_its_shape_is_said(shape: tuple[int, ...]) -> None:
    assert str(shape) in str(show_sample(np.zeros(shape)))


def test_large_images_become_small() -> None:
    shown = show_sample(np.random.default_rng(0).random((500, 1000, 3)))
    assert pixels(shown).shape == (64, 128, 3) and shown.image.startswith("data:image/jpeg")
    assert len(shown.image) < 10_000


def test_figures() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    with pytest.importorskip("matplotlib").rc_context({"backend": "agg"}):
        figure, axes = pyplot.subplots(figsize=(4, 2))
        axes.set_facecolor("red")
        found = pixels(show_sample(figure))
    assert found.shape == (180, 360, 3) and (found == [255, 0, 0]).all(-1).mean() > 0.3
    assert not pyplot.fignum_exists(figure.number)


def test_texts_and_rows() -> None:
    assert show_sample("a <b>").text == "a <b>"
    long = show_sample(("long " * 3000, 1))
    assert long.text.endswith("long …") and len(long.text) == 10_001
    assert long.characters == 15_000 and len(show_sample("a" * 700, letters=600).text) == 601
    assert show_sample("a\r\nb").text == "a\nb" and show_sample(long) is long
    assert show_sample("two\n lines").brief == "two lines"
    assert show_sample({"age": 3.0000001, "x": torch.arange(20)}).cells == (
        ("age", "3"),
        ("x", "0 1 2 3 4 5 6 7 ..."),
    )
    assert show_sample((3, 5, 7)).cells == (("0", "3"), ("1", "5"), ("2", "7"))
    assert show_sample(np.zeros(100)).cells[-1] == ("...", "100 numbers")
    assert show_sample(np.zeros((2, 2, 2, 2))).text == "array of shape (2, 2, 2, 2)"
    assert show_sample(5).text == "5"
    assert show_sample({"a": "b"}).brief == "a b"


def test_texts_beside_tokens() -> None:
    ids = torch.arange(9)
    assert show_sample({"input_ids": ids, "text": "a\nb", "labels": ids}).text == "a\nb"
    both = show_sample({"question": "who?", "input_ids": ids, "answer": "me"})
    assert both.text == "question:\nwho?\nanswer:\nme\n"
    assert [part.kind for part in both.parts] == ["special", "plain", "special", "plain"]
    assert show_sample({"input_ids": ids, "source": "web"}).text == "source:\nweb\n"
    assert show_sample({"text": "a"}).cells == (("text", "a"),)
