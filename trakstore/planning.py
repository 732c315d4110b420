"""Plans in integers: shapes of blocks and chunks, shares of workers, ranges of rows, bytes.

Nothing here reads, allocates or knows of arrays; every plan is a function of its arguments alone, so
that workers agree on it without a word between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dask.utils import parse_bytes

from trakstore.errors import LARGER_LIMIT, MemoryLimitError, TrakStoreError
from trakstore.quantities import as_number, as_whole, is_number, is_whole, shown

CHUNK_BYTES = 8 * 2**20
BLOCK_BYTES = 8 * CHUNK_BYTES
BLOCKS_PER_SPLIT = 64
# One part in so many is left to the allocator and the interpreter, which take up to a tenth (measured).
SLACK = 8


@dataclass(frozen=True)
class BlockShape:
    """Rows of a block, and rows and columns of a feature chunk; chunks tile blocks exactly."""

    block_rows: int
    chunk_rows: int
    chunk_columns: int


def block_shape(
    rows: int, columns: int, itemsize: int, *, at_least: int = 1, block_rows: int | None = None
) -> BlockShape:
    """Choose the shape of a block: the smaller of 64 MB of rows and a 64th of the split.

    Parameters
    ----------
    rows, columns : int
        Shape of the split's features.
    itemsize : int
        Bytes of one stored value.
    at_least : int
        Rows of a batch: blocks hold whole batches where they can.
    block_rows : int, optional
        Rows of a block, when the caller decides.

    Examples
    --------
    >>> block_shape(1_000_000, 512, 4, at_least=64)
    BlockShape(block_rows=15680, chunk_rows=3920, chunk_columns=512)
    >>> block_shape(1297, 512, 4, at_least=32)
    BlockShape(block_rows=32, chunk_rows=32, chunk_columns=512)
    """
    row_bytes = max(1, columns * itemsize)
    if block_rows is None:
        wanted = min(BLOCK_BYTES // row_bytes, -(-rows // BLOCKS_PER_SPLIT))
        block_rows = max(1, at_least, -(-wanted // at_least) * at_least)
    chunks = max(1, round(block_rows * row_bytes / CHUNK_BYTES))
    chunk_rows = -(-block_rows // chunks)
    # A row longer than two chunks is cut into columns of one; shorter rows stay whole.
    chunk_columns = columns if row_bytes <= 2 * CHUNK_BYTES else CHUNK_BYTES // itemsize
    return BlockShape(chunk_rows * chunks, chunk_rows, max(1, chunk_columns))


def share(blocks: int, rank: int, world: int) -> range:
    """Return the contiguous block numbers that ``rank`` does first, before it helps others.

    Examples
    --------
    >>> [list(share(5, rank, 2)) for rank in range(2)]
    [[0, 1], [2, 3, 4]]
    """
    if not 0 <= rank < world:
        raise TrakStoreError(f"rank {rank} is not in 0..{world - 1} (world size {world})")
    return range(blocks * rank // world, blocks * (rank + 1) // world)


def ranges(rows: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield ``(start, stop)`` pairs of at most ``size`` rows that cover ``rows``.

    Examples
    --------
    >>> list(ranges(5, 2))
    [(0, 2), (2, 4), (4, 5)]
    """
    for start in range(0, rows, size):
        yield start, min(rows, start + size)


def span_of(numbers: range) -> tuple[int, int]:
    """Return the least number of a range and the one behind the largest, 0 and 0 for none.

    Examples
    --------
    >>> span_of(range(2, 9, 3)), span_of(range(8, 1, -3)), span_of(range(5, 5))
    ((2, 9), (2, 9), (0, 0))
    """
    if not numbers:
        return 0, 0
    low, high = sorted((numbers[0], numbers[-1]))
    return low, high + 1


def byte_count(size: int | str) -> int:
    """Return a number of bytes from ``600_000_000``, ``"600MB"`` or ``"1GiB"``.

    Examples
    --------
    >>> byte_count("600MB")
    600000000
    """
    if is_whole(size):
        return as_whole(size, "a size", 1, needed="must be positive")
    if is_number(size):
        return int(as_number(size, "a size", least=1, needed="must be positive"))
    try:
        count = int(parse_bytes(size)) if isinstance(size, str) else None
    except (ValueError, OverflowError):
        count = None
    if count is None:
        raise TrakStoreError(f"a size is a number of bytes or like '600MB', got {shown(size)}")
    if count <= 0:
        raise TrakStoreError(f"a size must be positive, got {size!r}")
    return count


def human_bytes(count: int) -> str:
    """Write ``count`` bytes for people.

    Examples
    --------
    >>> human_bytes(64_000_000), human_bytes(512), human_bytes(16_285_700_000_000_000)
    ('64.0 MB', '512 B', '16.3 PB')
    """
    size = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB", "PB", "EB"):
        if size < 1000 or unit == "EB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def counted(count: int, thing: str) -> str:
    """Write a count of things for people.

    Examples
    --------
    >>> counted(1, "block"), counted(1200, "block")
    ('1 block', '1,200 blocks')
    """
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def human_time(seconds: float) -> str:
    """Write a time for people.

    Examples
    --------
    >>> human_time(8.25), human_time(600), human_time(9000)
    ('8.2 s', '10.0 min', '2.5 h')
    """
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def window_rows(
    rows: int,
    row_bytes: int,
    fixed_bytes: int,
    limit: int,
    what: str,
    advice: str = LARGER_LIMIT,
) -> int:
    """Compute the number of ``rows`` that can be worked on at once in ``limit`` bytes.

    Parameters
    ----------
    rows : int
        Number of rows.
    row_bytes : int
        Bytes that each row held at once costs.
    fixed_bytes : int
        Bytes that are needed however few rows are held.
    limit : int
        The memory limit in bytes.
    what, advice : str
        Name of the work in the message, and what to do where it does not fit.

    Raises
    ------
    MemoryLimitError
        When not even one row fits.

    Examples
    --------
    >>> window_rows(1000, 100, 500, 12_000, "top-k")
    100
    """
    return max(1, fit_slots(rows, 1, fixed_bytes, row_bytes, limit, what, advice))


def fit_slots(
    slots: int,
    least: int,
    fixed_bytes: int,
    slot_bytes: int,
    limit: int,
    what: str,
    advice: str = LARGER_LIMIT,
) -> int:
    """Compute the number of ``slots`` tasks that may run at once in ``limit`` bytes, ``least`` or more.

    Raises
    ------
    MemoryLimitError
        When not even ``least`` tasks fit.

    Examples
    --------
    >>> fit_slots(8, 1, 100, 10, 176, "a gram")
    5
    """
    fitting = (limit - limit // SLACK - fixed_bytes) // max(1, slot_bytes)
    if fitting < least:
        need = human_bytes(with_slack(fixed_bytes + least * slot_bytes))
        raise MemoryLimitError(
            f"{what} needs at least {need}, the memory limit is {human_bytes(limit)}: {advice}"
        )
    return min(slots, fitting)


def with_slack(count: int) -> int:
    """Return the limit that a plan of ``count`` bytes needs.

    Examples
    --------
    >>> with_slack(7000)
    8000
    """
    return -(-count * SLACK // (SLACK - 1))
