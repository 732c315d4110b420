"""Keys that a split of its size can have, and chunks behind its last row."""

from __future__ import annotations

from operator import lt

from trakstore.storage import layout
from trakstore.storage.arrays import column_grid
from trakstore.storage.split import Split


def belongs(split: Split, key: str) -> bool:
    """Tell whether a key is one of those that a split of this spec can have."""
    name, _, rest = layout.below(split.path, key).partition("/")
    if not rest:
        return name == layout.DOCUMENT
    if name not in (*split.columns, layout.WRITTEN, layout.MASKED, layout.SKIPPED):
        return False
    if rest == layout.DOCUMENT:
        return True
    if name == layout.WRITTEN:
        return layout.marker_block(rest) is not None or layout.skipped_block(rest) is not None
    numbers, grid = layout.chunk_numbers(rest), column_grid(split.spec, name)
    return len(numbers) == len(grid) and all(map(lt, numbers, grid))


def is_beyond(split: Split, key: str) -> bool:
    """Tell whether a key is a chunk's of a column, but for rows that the split does not have."""
    name, _, rest = layout.below(split.path, key).partition("/")
    numbers, grid = layout.chunk_numbers(rest), column_grid(split.spec, name)
    return (
        name in (*split.columns, layout.MASKED, layout.SKIPPED)
        and len(numbers) == len(grid)
        and numbers[0] >= grid[0]
        and all(map(lt, numbers[1:], grid[1:]))
    )
