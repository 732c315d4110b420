"""A sample in the form that a page shows: a small image, a text, or the cells of a table row."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from numbers import Number
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trakstore.report.text_parts import ScoredPart, TextPart, excerpt, preview, string_parts

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE, FIGURE_SIDE = 128, 360  # pixels of the longer side of an image, and of a drawn figure
_LOSSLESS = 64 * 64  # images of more pixels become JPEG
LETTERS = 10_000  # most characters of a text, where a page has room for it
_STRONGEST = 3
_CELLS, _CELL_LETTERS = 12, 60
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Shown:
    """Sample as it is shown, in one of these forms; an image may also have a text.

    Attributes
    ----------
    image : str
        A ``data:`` URL, ``width`` by ``height`` pixels.
    parts : tuple of TextPart
        Text, not escaped.
    characters : int
        Length of the whole text, of which ``parts`` may be an excerpt.
    cells : tuple of (name, value)
        Columns of a table row.
    strongest : tuple of ScoredPart
        Up to three tokens of the whole text with the largest scores by magnitude; none without scores.
    """

    image: str = ""
    width: int = 0
    height: int = 0
    parts: tuple[TextPart, ...] = ()
    characters: int = 0
    cells: tuple[tuple[str, str], ...] = ()
    strongest: tuple[ScoredPart, ...] = ()

    @property
    def text(self) -> str:
        """Text of all parts, not escaped."""
        return "".join(part.text for part in self.parts)

    @property
    def preview(self) -> tuple[TextPart, ...]:
        """First parts of a long text, shown until it is opened; empty for a short text."""
        return preview(self.parts)

    @property
    def brief(self) -> str:
        """First words; empty for an image."""
        words = "".join(part.text for part in self.parts if part.kind != "special")
        words = words or ", ".join(f"{name} {value}" for name, value in self.cells)
        return _cut(" ".join(words.split()), 60)


def shown_text(parts: Iterable[TextPart], letters: int = LETTERS) -> Shown:
    """Prepare a text of limited length to be shown; its lines are kept."""
    # Line breaks of other systems would otherwise be written out as control characters.
    lines = tuple(replace(one, text=one.text.replace("\r\n", "\n")) for one in parts)
    return Shown(
        parts=excerpt(lines, letters),
        characters=sum(len(one.text) for one in lines),
        strongest=strongest_of(lines),
    )


def strongest_of(parts: Iterable[TextPart]) -> tuple[ScoredPart, ...]:
    """Return the tokens with the largest scores by magnitude, three at most."""
    scored = [one for one in parts if isinstance(one, ScoredPart) and one.score]
    return tuple(sorted(scored, key=lambda one: -abs(one.score))[:_STRONGEST])


def show_sample(sample: Any, letters: int = LETTERS) -> Shown:
    """Turn a sample into a picture, a text or cells; text is still to be escaped.

    Parameters
    ----------
    sample : object
        A string; a PIL image; a matplotlib figure; an array or tensor of shape (height, width), with
        channels first or last (an image), or of one dimension (a table row); a mapping (a table row, or
        the texts beside its ``input_ids``); a tuple or list such as (input, label), whose first entry
        is shown; or a :class:`Shown`.
    letters : int
        Most characters of a text; a longer one becomes an excerpt.

    Examples
    --------
    >>> show_sample({"age": 31, "town": "Rome"}).cells
    (('age', '31'), ('town', 'Rome'))
    >>> show_sample(("a text", 3)).text
    'a text'
    """
    # Of (input, label) and the like the input is shown. A list of numbers is a row itself.
    if isinstance(sample, tuple | list) and sample and not _is_number(sample[0]):
        return show_sample(sample[0], letters)
    if isinstance(sample, Shown):
        return sample
    if texts := string_parts(sample):
        return shown_text(texts, letters)
    if isinstance(sample, Mapping):
        cells = [(_cut(str(key), 30), _brief(value)) for key, value in sample.items()]
        return Shown(cells=tuple(cells[:_CELLS]))
    # Kinds are recognised by their methods, so that a page of texts imports neither matplotlib nor
    # Pillow.
    if hasattr(sample, "savefig"):
        return _figure(sample)
    if hasattr(sample, "getbands"):
        return _image(sample, SIDE)
    array = _array(sample)
    if array is None:
        return shown_text([TextPart(str(sample))], letters)
    return _of_array(array)


def _is_number(value: Any) -> bool:
    return isinstance(value, Number) or getattr(value, "shape", None) == ()


def _array(sample: Any) -> NDArray[Any] | None:
    """Return the sample as an array of numbers, if it is one."""
    if hasattr(sample, "detach"):
        sample = sample.detach().cpu()
    if not hasattr(sample, "__array__") and not isinstance(sample, tuple | list):
        return None
    array = np.asarray(sample)
    return array if array.dtype.kind in "biuf" and array.ndim else None


def _of_array(array: NDArray[Any]) -> Shown:
    if not array.size:
        return shown_text([TextPart(f"array of shape {array.shape}")])
    array = array.squeeze() if array.ndim > 2 else array
    # Channels are first, as in torch, unless only the last dimension can be channels.
    if array.ndim == 3 and array.shape[0] in _CHANNELS and array.shape[2] not in _CHANNELS:
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in _CHANNELS):
        from PIL import Image

        return _image(Image.fromarray(_bytes(array)), SIDE)
    if array.ndim == 1:
        cells = [(str(at), f"{value:.4g}") for at, value in enumerate(array[:_CELLS].tolist())]
        more = [("...", f"{len(array):,} numbers")] if len(array) > _CELLS else []
        return Shown(cells=(*cells, *more))
    return shown_text([TextPart(f"array of shape {array.shape}")])


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale values to 0..255: bytes are kept, 0 to 1 is stretched, others span their own range."""
    if array.dtype == np.uint8:
        return array
    values = np.nan_to_num(array.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    scaled = (values - low) / ((high - low) or 1.0)
    return np.asarray(np.round(255 * scaled), dtype=np.uint8)


def _image(image: Image, side: int) -> Shown:
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    image.thumbnail((side, side))
    lossless = image.width * image.height <= _LOSSLESS
    return _encoded(image, "PNG" if lossless else "JPEG")


def _figure(figure: Any) -> Shown:
    from PIL import Image

    drawn = BytesIO()
    figure.savefig(drawn, format="png", dpi=FIGURE_SIDE / max(figure.get_size_inches()))
    # pyplot keeps every figure that it made, and warns of too many. It is not imported for this.
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close(figure)
    return _encoded(Image.open(drawn).convert("RGB"), "PNG")


def _encoded(image: Image, form: str) -> Shown:
    out = BytesIO()
    image.save(out, format=form, quality=82, optimize=True)
    data = base64.b64encode(out.getvalue()).decode()
    return Shown(f"data:image/{form.lower()};base64,{data}", image.width, image.height)


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    array = _array(value)
    if array is None:
        return _cut(str(value), _CELL_LETTERS)
    flat = " ".join(f"{one:.4g}" for one in array.ravel()[:8].tolist())
    return _cut(flat + (" ..." if array.size > 8 else ""), _CELL_LETTERS)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
