"""Which keys a split can have."""

from __future__ import annotations

from trakstore.storage import layout
from trakstore.storage.arrays import column_grid
from trakstore.storage.split import Split

__all__ = ["belongs", "is_beyond"]


def belongs(split: Split, key: str) -> bool:
    """Whether a key is one of those that a split of this spec can have."""
    name, rest = _column(split, key)
    if not rest:
        return name == layout.DOCUMENT
    if name not in (*split.columns, layout.WRITTEN, layout.MASKED, layout.SKIPPED):
        return False
    if rest == layout.DOCUMENT:
        return True
    if name == layout.WRITTEN:
        return layout.marker_block(rest) is not None or layout.skipped_block(rest) is not None
    numbers, grid = layout.chunk_numbers(rest), column_grid(split.spec, name)
    return len(numbers) == len(grid) and all(
        n < size for n, size in zip(numbers, grid, strict=True)
    )


def is_beyond(split: Split, key: str) -> bool:
    """Whether a key is a chunk's of a column, but for rows that the split does not have."""
    name, rest = _column(split, key)
    numbers, grid = layout.chunk_numbers(rest), column_grid(split.spec, name)
    return (
        name in (*split.columns, layout.MASKED, layout.SKIPPED)
        and len(numbers) == len(grid)
        and numbers[0] >= grid[0]
        and all(n < size for n, size in zip(numbers[1:], grid[1:], strict=True))
    )


def _column(split: Split, key: str) -> tuple[str, str]:
    name, _, rest = key.removeprefix(f"{split.path}/").partition("/")
    return name, rest
