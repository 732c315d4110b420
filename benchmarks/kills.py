"""Kill featurize runs at random instants, resume them, and compare every column bit for bit.

    python benchmarks/kills.py --rounds 100

Each round starts ``torchrun`` with 2 ranks on a new store, waits for the first commit, waits a random
time, and kills by process id: one rank, all ranks, or the torchrun agent alone, whose ranks live on
and overlap with the resume. The run is then resumed with 1, 2 or 3 ranks, at equal threads per process,
and compared with a run that nobody disturbed. With ``--together`` each round instead starts two
uncoordinated runs of 2 ranks on one store at the same moment.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import trakstore as ts
from trakstore.errors import TrakStoreError

ROWS = {"train": 150, "test": 66}
BLOCK = 6  # rows: 25 and 11 blocks
SLEEP = 0.01  # seconds that reading a sample takes, so that a run lasts about a second
ROOT = Path(__file__).resolve().parent.parent


def job() -> Any:
    """A small network, slow samples, blocks of 6 rows."""
    import torch
    from torch import nn

    from trakstore.features import Job

    class Slow:
        def __init__(self, rows: int, seed: int) -> None:
            generator = torch.Generator().manual_seed(seed)
            self.x = torch.randn(rows, 16, generator=generator)
            self.y = torch.randint(0, 4, (rows,), generator=generator)

        def __len__(self) -> int:
            return len(self.x)

        def __getitem__(self, index: int) -> Any:
            time.sleep(SLEEP)
            return self.x[index], self.y[index]

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))
    datasets = {name: Slow(rows, seed) for seed, (name, rows) in enumerate(ROWS.items())}
    projector = ts.ProjectionSpec("sjlt", dim=128)
    return Job(model, datasets, projector=projector, batch_size=3, block_rows=BLOCK)


def start(ranks: int, store: Path) -> subprocess.Popen[str]:
    """``torchrun`` on the job."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", "-m", "trakstore", "featurize"]
    command += [f"{__file__}:job", "--store", str(store), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with store.with_suffix(f".{time.monotonic_ns()}.log").open("w") as log:
        return subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )


def finish(run: subprocess.Popen[str]) -> list[int]:
    """Wait for a run; the blocks that each rank wrote."""
    out, _ = run.communicate(timeout=300)
    if run.returncode != 0:
        raise SystemExit(
            f"featurize ended with exit code {run.returncode}: see the logs in {tempfile.gettempdir()}"
        )
    return [json.loads(line)["blocks"] for line in out.splitlines() if line.strip()]


def children(pid: int) -> list[int]:
    """Process ids of the ranks of a torchrun agent: their parent is the agent."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue  # it ended while we looked
            if int(parent) == pid:
                found.append(int(entry.name))
    return found


def markers(store: Path) -> int:
    """Blocks that are committed."""
    return len(list(store.glob("0/*/written/c.*.0")))


def columns(store: Path) -> dict[tuple[str, str], np.ndarray[Any, Any]]:
    """Every column of every split."""
    opened = ts.open_store(store)
    return {
        (name, column): split.column(column).read(0, split.rows)
        for name in ROWS
        for split in [opened.split(0, name)]
        for column in split.columns
    }


def same(store: Path, expected: dict[tuple[str, str], np.ndarray[Any, Any]]) -> bool:
    """Whether a store is complete and equal to the undisturbed one, bit for bit."""
    try:
        got = columns(store)
    except TrakStoreError as error:
        print(f"  unreadable: {error}")
        return False
    done = all(status.complete for status in ts.open_store(store).status())
    equal = got.keys() == expected.keys() and all(
        np.array_equal(got[name], column) for name, column in expected.items()
    )
    return done and equal


def kill(run: subprocess.Popen[str], what: str, rng: random.Random) -> list[int]:
    """Kill by process id; the ranks that live on."""
    ranks = children(run.pid)
    victims = {"rank": [rng.choice(ranks)] if ranks else [], "ranks": ranks, "agent": [run.pid]}
    for pid in victims[what]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue  # it was done
    return ranks if what == "agent" else []


def one_round(store: Path, expected: Any, what: str, ranks: int, rng: random.Random) -> list[int]:
    """Kill and resume once: committed before, written by the resume, missing blocks then."""
    run = start(2, store)
    while run.poll() is None and markers(store) == 0:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 1.3))
    orphans = kill(run, what, rng)
    if what != "agent":
        run.communicate(timeout=60)
    before = markers(store)
    again = finish(start(ranks, store))
    for pid in orphans:
        while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text():
            time.sleep(0.05)
    if not same(store, expected):
        raise SystemExit(f"WRONG after killing {what}, resumed with {ranks}: {store} is kept")
    shutil.rmtree(store)
    return [before, sum(again)]


def main() -> None:
    """Run the rounds and print what was seen."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--together", action="store_true", help="two runs at once, nobody killed")
    options = parser.parse_args()
    rng, folder = random.Random(options.seed), Path(tempfile.mkdtemp())
    finish(start(1, folder / "undisturbed.zarr"))
    expected = columns(folder / "undisturbed.zarr")
    total = markers(folder / "undisturbed.zarr")
    seen: dict[str, list[list[int]]] = {}
    for number in range(options.rounds):
        store = folder / f"{number}.zarr"
        if options.together:
            runs = [start(2, store), start(2, store)]
            wrote = [sum(finish(run)) for run in runs]
            if not same(store, expected):
                raise SystemExit(f"WRONG after two runs at once: {store} is kept")
            shutil.rmtree(store)
            seen.setdefault("two at once", []).append([0, sum(wrote)])
        else:
            what = ("rank", "ranks", "agent")[number % 3]
            result = one_round(store, expected, what, 1 + number // 3 % 3, rng)
            seen.setdefault(f"kill {what}", []).append(result)
        print(f"\r{number + 1} rounds", end="", file=sys.stderr, flush=True)
    shutil.rmtree(folder)
    print(f"\n{options.rounds} rounds, {total} blocks each: every column equal bit for bit")
    print(f"{'':12} rounds  committed at the kill  blocks done twice a round")
    for what, results in seen.items():
        before = [b for b, _ in results]
        twice = [max(0, b + w - total) for b, w in results]
        print(
            f"{what:12} {len(results):6}  {min(before):3} to {max(before):3}"
            f"{'':14} {np.mean(twice):.1f} (most {max(twice)})"
        )


if __name__ == "__main__":
    main()
