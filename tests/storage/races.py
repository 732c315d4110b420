"""Two operations at once on one store, each in a process of its own: as one after the other?

    python tests/storage/races.py --rounds 20 FOLDER mask+append save+save

Whatever they did is what one of the two orders gives, or one of them was refused and nothing is there
of it. Without pairs all of them are run.
"""

from __future__ import annotations

import argparse
import itertools
import os
import pickle
import random
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.evaluation import Retrained, SubsetPlan, retrain, retrained_models
from trakstore.kernels.stored_grams import origin_of, split_gram, stored_gram
from trakstore.spec import SplitSpec
from trakstore.storage.columns import stored_rows
from trakstore.storage.exchange.from_traker import import_traker
from trakstore.storage.writer import BlockWriter

ROWS, DIM, BLOCK = 500, 8, 16
REFUSED, FAILED = 3, 4
Operation = Callable[[str], None]


def rows_of(seed: int, count: int = ROWS) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


def build(where: Path) -> None:
    """Two epochs of targets and train rows, a split of which half is missing, one that is damaged."""
    spec = ts.ProjectionSpec("external", dim=DIM)
    store = ts.FeatureStore.create(where, projection=spec)
    q = np.full(ROWS, 0.5, np.float32)
    for epoch in (0, 1):
        store.write_split(epoch, "train", rows_of(epoch), out_to_loss=q, block_rows=BLOCK)
        store.write_split(epoch, "test", rows_of(10 + epoch, 40), out_to_loss=q[:40], block_rows=8)
    columns = (("features", "float32"), ("norm", "float32"), ("sample_id", "int64"))
    half = store.create_split(2, "train", SplitSpec(ROWS, DIM, columns, block_rows=BLOCK))
    for block in range(0, half.spec.blocks, 2):
        write_block(half, block)
    store.write_split(0, "other", rows_of(5), block_rows=BLOCK)
    damaged = where / "0" / "other" / "features" / "c" / "3" / "0"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    source = Path(f"{where}.traker")
    (source / "3").mkdir(parents=True)
    told = f'{{"JL dimension": {DIM}, "JL matrix type": "normal", "train set size": {ROWS}}}'
    (source / "metadata.json").write_text(told)
    (source / "id_3.json").write_text('{"3": {"is_featurized": 1, "is_finalized": 0}}')
    arrays = {
        "grads": rows_of(7),
        "out_to_loss": q[:, None],
        "_is_featurized": np.ones((ROWS, 1), "i4"),
    }
    for name, values in arrays.items():
        np.lib.format.open_memmap(source / f"3/{name}.mmap", "w+", values.dtype, values.shape)[
            :
        ] = values


def write_block(split: Any, block: int) -> None:
    start, stop = split.spec.block_range(block)
    rows = stored_rows(rows_of(2)[start:stop], "float32", start)
    BlockWriter(split).write(block, rows | {"sample_id": np.arange(start, stop)})


def featurize(where: str) -> None:
    split = ts.open_store(where).split(2, "train")
    for block in split.missing_blocks():
        write_block(split, block)


def append(where: str) -> None:
    more = {"ids": list(range(ROWS, ROWS + 40)), "out_to_loss": np.full(40, 0.5)}
    ts.open_store(where).append(0, "train", rows_of(3, 40), **more)


def mask(where: str) -> None:
    ts.open_store(where).mask("train", list(range(0, 300, 3)), epochs=[0, 1])


def drop(where: str) -> None:
    ts.open_store(where).drop(0, "train")


def drop_half(where: str) -> None:
    ts.open_store(where).drop(2, "train")


def save(where: str) -> None:
    store = ts.open_store(where)
    ts.save_scores(ts.trak_scores(store, epochs=[0, 1]), store, "s", memory_limit="2MB")


def kernel(where: str) -> None:
    ts.kernel_report(ts.open_store(where), 0)


def repair(where: str) -> None:
    ts.verify_store(where, repair=True, workers=2)


def bring(where: str) -> None:
    import_traker(f"{Path(where).parent / 'base'}.traker", where)


def train(subsets: Any, seeds: Any) -> Retrained:
    return Retrained(np.asarray(subsets[:, :6] + seeds[:, None], dtype=np.float32))


def again(where: str) -> None:
    retrain(train, where, "again", SubsetPlan(rows=ROWS), models=8, at_once=2)


OPERATIONS: dict[str, Operation] = {
    "featurize": featurize,
    "append": append,
    "mask": mask,
    "drop": drop,
    "drop_half": drop_half,
    "save": save,
    "kernel": kernel,
    "repair": repair,
    "import": bring,
    "retrain": again,
}


def state(where: str) -> dict[str, bytes]:
    """All that can be read; what is refused, by its kind."""
    store, found = ts.open_store(where), {}

    def keep(name: str, read: Callable[[], Any]) -> None:
        try:
            values = np.asarray(read())
            rounded = np.round(values, 3) + 0.0 if values.dtype.kind == "f" else values
            found[name] = rounded.tobytes()
        except TrakStoreError as error:
            found[name] = type(error).__name__.encode()

    for epoch, name in itertools.product(range(4), ("train", "test", "other")):
        for column in ("features", "sample_id", "masked"):

            def read(epoch: int = epoch, name: str = name, column: str = column) -> Any:
                split = store.split(epoch, name)
                if column == "masked":
                    return split.masked
                split.require_complete()
                return split.column(column).read(0, split.rows)

            keep(f"{epoch}/{name}/{column}", read)
    keep("scores", lambda: ts.open_scores(store, "s"))
    keep("again", lambda: retrained_models(store, "again")["output"])
    keep("gram", lambda: _gram(store))
    report = ts.verify_store(where)
    wrong = [str(one) for one in report.findings if "/other/" not in one.key]
    found["verify"] = "; ".join(wrong).encode()
    return found


def _gram(store: ts.FeatureStore) -> Any:
    """The difference of a gram that counts from that of the rows: 0, or there is none."""
    split = store.split(0, "train")
    if stored_gram(split, origin_of(split, "float32")) is None:
        return 0.0
    kept = np.delete(split.column("features").read(0, split.rows), split.masked, axis=0)
    return np.abs(split_gram(split).matrix - kept.astype(float).T @ kept).max()


def forked(call: Callable[[], Any], answer: Path | None = None) -> int:
    """Number of a process that calls, and exits with whether that was refused, or failed."""
    process = os.fork()
    if process:
        return process
    code = FAILED
    try:
        result = call()
        if answer is not None:
            answer.write_bytes(pickle.dumps(result))
        code = 0
    except TrakStoreError as error:
        print(f"    refused: {type(error).__name__}: {str(error)[:200]}", flush=True)
        code = REFUSED
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    finally:
        os._exit(code)


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def after(folder: Path, *names: str) -> dict[str, bytes]:
    """The state after operations one after the other."""
    where = str(folder / "run")
    shutil.rmtree(where, ignore_errors=True)
    shutil.copytree(folder / "base", where)
    for name in names:
        ended(forked(lambda: OPERATIONS[name](where)))  # noqa: B023
    return look(folder)


def look(folder: Path) -> dict[str, bytes]:
    where, answer = str(folder / "run"), folder / "answer"
    if ended(forked(lambda: state(where), answer)):
        raise SystemExit("the store cannot be read")
    return dict(pickle.loads(answer.read_bytes()))  # noqa: S301


def race(
    folder: Path,
    first: str,
    second: str,
    rounds: int,
    chance: random.Random,
    alone: dict[str, dict[str, bytes]],
) -> list[str]:
    """What went wrong in so many rounds; ``alone`` keeps the states after one operation."""
    for name in {first, second} - alone.keys():
        alone[name] = after(folder, name)
    both = {(first, second), (second, first)}  # one order where an operation meets itself
    orders = [after(folder, *names) for names in both]
    wrong, where = [], str(folder / "run")
    for _ in range(rounds):
        shutil.rmtree(where)
        shutil.copytree(folder / "base", where)
        began = forked(lambda: OPERATIONS[first](where))
        time.sleep(chance.uniform(0, 0.15))  # another start each time
        codes = ended(forked(lambda: OPERATIONS[second](where))), ended(began)
        found = look(folder)
        allowed = list(orders)
        allowed += [alone[first]] if codes[0] == REFUSED else []
        allowed += [alone[second]] if codes[1] == REFUSED else []
        if FAILED in codes or found not in allowed:
            differ = [[key for key in found if one[key] != found[key]] for one in allowed]
            wrong.append(
                f"{first}+{second}: codes {codes[::-1]}, differs from the orders in {differ}"
            )
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("pairs", nargs="*", help="such as mask+append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    base = given.folder / "base"
    if not base.exists() and ended(forked(lambda: build(base))):
        return 1
    every = itertools.combinations_with_replacement(OPERATIONS, 2)
    pairs = [tuple(one.split("+")) for one in given.pairs] or list(every)
    chance, wrong, alone = random.Random(given.seed), [], {}
    for first, second in pairs:
        print(f"{first}+{second}", flush=True)
        wrong += race(given.folder, first, second, given.rounds, chance, alone)
    print("\n".join(wrong) or f"{len(pairs)} pairs, {given.rounds} rounds each: none was wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
