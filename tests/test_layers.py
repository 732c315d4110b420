"""A module imports only modules of a lower rank, or earlier files of its own folder."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import trakstore

ROOT = Path(trakstore.__file__).parent

# rank of each room; files of a folder in the order in which they may import each other
RANKS: dict[str, int] = {
    "markup": -1,
    "errors": 0,
    "documents": 2,
    "named": 1,
    "quantities": 1,
    "planning": 2,
    "sampling": 2,
    "progress": 3,
    "spec": 3,
    "storage": 4,
    "features": 5,
    "linalg": 5,
    "scores": 6,
    "analysis": 7,
    "evaluation": 7,
    "attributors": 8,
    "report": 8,
    "cli": 9,
    "__main__": 10,
    "__init__": 10,
}
APART = [("features", "linalg"), ("linalg", "features")]
ORDER: dict[str, list[str]] = {
    "storage": [
        "layout",
        "checksums",
        "chunks",
        "buffers",
        "files",
        "objects",
        "local",
        "locations",
        "together",
        "numbered",
        "arrays",
        "markers",
        "stored",
        "splits",
        "masks",
        "claims",
        "snapshots",
        "writer",
        "ids",
        "columns",
        "growth",
        "skipped",
        "runs",
        "plans",
        "root",
        "catalogue",
        "creation",
        "given",
        "notebook",
        "store",
        "opening",
        "checks",
        "saved",
        "tables",
        "records",
        "retrained",
        "grid",
        "walk",
        "verify",
        "export",
        "traker",
    ],
    "features": [
        "parameters",
        "weights",
        "projectors",
        "axes",
        "layers",
        "outputs",
        "precision",
        "fitness",
        "graph",
        "plain",
        "gradients",
        "recording",
        "constants",
        "tape",
        "selfcheck",
        "factorised",
        "blockcheck",
        "fingerprint",
        "ranks",
        "devices",
        "background",
        "batches",
        "footprint",
        "activations",
        "bad_rows",
        "rows",
        "job",
        "predictions",
        "spent",
        "watch",
        "task",
        "twins",
        "featurize",
    ],
    "cli": [
        "options",
        "output",
        "cluster",
        "methods",
        "walkthrough",
        "estimate",
        "demo",
        "featurize",
        "info",
        "kernel",
        "score",
        "drop",
        "lists",
        "topk",
        "neighbours",
        "evolve",
        "transitions",
        "groups",
        "dynamics",
        "evaluate",
        "samples",
        "gathering",
        "report",
        "verify",
        "export",
        "traker",
        "app",
    ],
    "evaluation": [
        "intervals",
        "lds",
        "retraining",
        "training",
        "counterfactual",
        "mislabels",
        "stability",
        "verdicts",
        "model_checks",
        "store_checks",
        "checks",
        "efficiency",
    ],
    "report": [
        "units",
        "tables",
        "findings",
        "evaluations",
        "pictures",
        "charts",
        "drawing",
        "samples",
        "contents",
        "panels",
        "page",
    ],
    "analysis": [
        "concentration",
        "groups",
        "evolution",
        "trajectories",
        "distribution",
        "scales",
        "transitions",
        "costs",
        "changepoint",
        "dynamics",
        "properties",
    ],
    "linalg": [
        "rows",
        "weights",
        "cluster",
        "tiles",
        "memory",
        "gram",
        "grams",
        "tiled",
        "solvers",
        "iterative",
        "blocked",
        "inverse",
        "choice",
        "lazy",
        "devices",
        "parts",
        "factored",
        "streaming",
        "narrowing",
        "groups",
        "lists",
        "topk",
        "approximate",
        "entries",
        "saving",
        "quadratic",
        "ranks",
        "costs",
        "sums",
        "moments",
        "windows",
    ],
}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> list[list[str]]:
    """The trakstore modules that a file imports, as parts after ``trakstore``."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found += [name.split(".")[1:] for name in names if name.startswith("trakstore.")]
    return [parts for parts in found if parts[0] not in ("__version__",)]


def room(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_lower_ranks(path: Path) -> None:
    here = room(path)
    assert here in RANKS, f"{here} is not a room of the design"
    for parts in imports(path):
        there = parts[0]
        if there not in RANKS:  # a name that trakstore/__init__.py gives
            assert RANKS[here] >= 9, f"{path} imports the package's public names"
            continue
        assert (here, there) not in APART, f"{path} imports {'.'.join(parts)}"
        assert there == here or RANKS[there] < RANKS[here], f"{path} imports {'.'.join(parts)}"


@pytest.mark.parametrize("folder", ORDER)
def test_a_file_imports_only_earlier_files_of_its_folder(folder: str) -> None:
    order = ORDER[folder]
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT / folder).with_suffix("").parts
        if parts[0] == "__init__" or (len(parts) > 1 and parts[-1] == "__init__"):
            continue
        assert parts[0] in order, f"{path} has no place in the order of {folder}"
        for there in imports(path):
            if there[0] == folder and len(there) > 1 and there[1] in order:
                later = there[1] != parts[0] and order.index(there[1]) > order.index(parts[0])
                assert not later, f"{path} imports {'.'.join(there)}"
