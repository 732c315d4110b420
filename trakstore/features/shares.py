"""Blocks that a worker writes: its own share of a split, then those that others have not begun.

Workers do not communicate, except the ranks of one sharded model: markers of blocks say what is there.
"""

from __future__ import annotations

import random
import time
from dataclasses import replace
from itertools import zip_longest

from trakstore.features.spent import Featurized, Spent
from trakstore.features.task import SplitTask
from trakstore.features.worker import Worker
from trakstore.planning import share
from trakstore.progress import ProgressLine
from trakstore.storage.completion import note_complete

__all__ = ["do_share", "help_others"]


def do_share(task: SplitTask, worker: Worker, line: ProgressLine) -> Featurized:
    """Write the blocks that are this rank's share, which depends on count, rank and world alone."""
    missing = set(task.missing())
    own = share(task.writer.spec.blocks, worker.rank, worker.world)
    done = _write([block for block in own if block in missing], task, line)
    # A block of this worker's share that was committed twice was taken over by a helper.
    return replace(done, overtaken=done.repeated, repeated=0)


def help_others(task: SplitTask, worker: Worker, line: ProgressLine) -> Featurized:
    """Write blocks until none is missing, half of the missing ones between two listings.

    Each block's marker is checked just before it is begun. The last missing blocks are most likely
    being written by other workers, who are first given the time that a block takes.
    """
    done, began, waited = Featurized(0, 0, 0.0), time.monotonic(), False
    # Each helper shuffles in its own way, so that helpers spread over the missing blocks.
    choice = random.Random(worker.rank)
    while missing := task.missing():
        if len(missing) < worker.world and not waited:
            waited = True
            _wait_for(task, missing, task.seconds_per_block)
            _show_others(task, line)
            continue
        choice.shuffle(missing)
        done += _write(missing[: -(-len(missing) // 2)], task, line)
    note_complete(task.writer.split)
    seconds = time.monotonic() - began
    idle = Featurized(0, 0, seconds - done.seconds, spent=Spent(helping=seconds - done.seconds))
    return done + idle


def _wait_for(task: SplitTask, missing: list[int], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and task.writer.split.missing_blocks() == missing:
        time.sleep(min(0.2, seconds / 10))


def _write(blocks: list[int], task: SplitTask, line: ProgressLine) -> Featurized:
    began = time.monotonic()
    before = (task.rows_written, task.blocks_written, task.rows_twice, task.spent)
    own = task.sharding.dealt(blocks)
    for block, then in zip_longest(own, own[1:]):
        if task.is_written(block):  # another worker was faster
            continue
        task.write(block, then)
        start, stop = task.writer.spec.block_range(block)
        line.advance(stop - start)
        _show_others(task, line)
    task.wait()
    task.sharding.finish()
    return task.since(*before, time.monotonic() - began)


def _show_others(task: SplitTask, line: ProgressLine) -> None:
    """Count what other workers committed, by one listing, when the progress line is due."""
    if line.wants_a_look():
        line.reach(task.writer.split.status().written_rows)
