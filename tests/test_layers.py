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
    "paths": 0,
    "documents": 2,
    "named": 1,
    "quantities": 1,
    "planning": 2,
    "sampling": 2,
    "progress": 3,
    "spec": 3,
    "storage": 4,
    "features": 5,
    "passes": 5,
    "kernels": 6,
    "scores": 7,
    "methods": 8,
    "analysis": 9,
    "evaluation": 9,
    "attributors": 10,
    "report": 10,
    "serve": 11,
    "cli": 12,
    "__main__": 13,
    "__init__": 13,
    "conftest": 13,  # names that examples in docstrings have
}
QUERY = ("passes", "kernels", "scores", "methods", "analysis")
APART = [pair for room in QUERY for pair in (("features", room), (room, "features"))]
ORDER: dict[str, list[str]] = {
    "features/checkpoints": [
        "stored_weights",
        "plain_tensors",
        "safetensors_file",
        "torch_file",
        "shards",
        "distributed_folder",
        "fitting",
        "adapter",
        "formats",
        "by_epoch",
        "loading_weights",
        "trainer_folder",
    ],
    "features/sharding": [
        "places",
        "slices",
        "lockstep",
        "carrying",
        "sharding",
        "finding",
        "on_meta",
        "starting",
    ],
    "spec": [
        "whole_fields",
        "projections",
        "projection_spec",
        "output_spec",
        "parameter_spec",
        "scale_spec",
        "comparison",
        "store_spec",
        "split_spec",
    ],
    "spec/projections": [
        "kind",
        "sjlt",
        "kronecker",
        "rademacher",
        "gaussian",
        "identity",
        "external",
    ],
    "storage/exchange": [
        "named_files",
        "to_files",
        "from_traker",
    ],
    "storage/checking": [
        "walk",
        "statements",
        "dropped_splits",
        "verification",
    ],
    "storage/tables": [
        "saved_arrays",
        "saved_table",
        "training_records",
        "retrained",
        "runs",
        "scale_factors",
        "gram_documents",
    ],
    "storage/backends": [
        "event_loop",
        "chunks",
        "buffers",
        "objects",
        "local",
        "location",
        "read_only",
        "together",
        "ahead",
    ],
    "attributors": [
        "model_checkpoints",
        "recognition",
        "tracker",
        "kept_features",
        "triples",
        "tracin_attributor",
        "trak_attributor",
        "over_time",
        "bias",
        "traker",
        "gradient_rows",
        "unprojected",
    ],
    "passes": [
        "sent",
        "rows",
        "dask_cluster",
        "scheduler",
        "gpu",
        "pinned",
        "one_pass",
        "memory",
    ],
    "kernels": [
        "row_weights",
        "device_gram",
        "gram",
        "stored_grams",
        "tiled_gram",
        "solvers",
        "iterative",
        "blocked_cholesky",
        "inverse_metric",
        "choice",
        "many_epochs",
    ],
    "scores": [
        "window_plans",
        "device_tiles",
        "parts",
        "lazy",
        "factored",
        "streaming",
        "selection",
        "running_lists",
        "device_lists",
        "top_k",
        "both_ends",
        "two_pass",
        "save",
        "entries",
        "saving",
        "rank_correlation",
        "costs",
        "sums",
        "moments",
        "windows",
    ],
    "methods": [
        "epochs",
        "sampled_kernel",
        "neighbours",
        "influence",
        "similarity",
        "tracin",
        "trak",
        "new_targets",
        "by_name",
        "kernel_report",
    ],
    "storage": [
        "layout",
        "backends",
        "group_documents",
        "numbered",
        "arrays",
        "markers",
        "dropped_rows",
        "eight_bits",
        "stored",
        "split",
        "sampled_rows",
        "masks",
        "claims",
        "completion",
        "snapshots",
        "writer",
        "ids",
        "columns",
        "growth",
        "skipped",
        "root",
        "catalogue",
        "creation",
        "given",
        "notebook",
        "block_checks",
        "tables",
        "dropping",
        "store",
        "staging",
        "opening",
        "known_rows",
        "embedded",
        "checking",
        "exchange",
    ],
    "features": [
        "wording",
        "parameters",
        "sharding",
        "spread",
        "weights",
        "checkpoints",
        "projectors",
        "axes",
        "graph",
        "quantised",
        "layers",
        "outputs",
        "precision",
        "fitness",
        "plain",
        "heap",
        "gradients",
        "recording",
        "constants",
        "tape",
        "selfcheck",
        "factorised",
        "last_layers",
        "blockcheck",
        "streamed",
        "fingerprint",
        "ranks",
        "devices",
        "background",
        "sample_columns",
        "sorted_batches",
        "padding",
        "batches",
        "loading",
        "footprint",
        "activations",
        "bad_rows",
        "draws",
        "to_host",
        "block_rows",
        "scale",
        "second_moments",
        "optimizer_moments",
        "job",
        "load_job",
        "split_samples",
        "sampled_moments",
        "scale_choice",
        "wanted_spec",
        "predictions",
        "preparation",
        "spent",
        "watch",
        "task",
        "worker",
        "shares",
        "twins",
        "incoming",
        "recorder",
        "featurize",
        "query_rows",
        "chat",
        "packs",
        "callback",
    ],
    "cli": [
        "commands",
        "options",
        "output",
        "cluster",
        "request",
        "walkthrough",
        "estimate",
        "demo",
        "narrowed_job",
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
        "report",
        "serve",
        "verify",
        "export",
        "import_traker",
        "app",
    ],
    "serve": [
        "question",
        "answer_data",
        "rendering",
        "answer",
        "like_example",
        "opened_images",
        "token_bounds",
        "new_samples",
        "sample_ids",
        "asked_sample",
        "stored_samples",
        "samples_to_show",
        "by_epoch",
        "entries",
        "held_rows",
        "held_kernels",
        "provenance",
        "query",
        "limits",
        "metrics",
        "description",
        "bodies",
        "access",
        "live_page",
        "daemon_threads",
        "work",
        "routes",
        "server",
    ],
    "evaluation": [
        "intervals",
        "lds",
        "retraining",
        "training",
        "removals",
        "wrong_labels",
        "agreement",
        "verdicts",
        "model_checks",
        "store_checks",
        "checks",
        "efficiency",
    ],
    "report": [
        "extras",
        "units",
        "terminal_tables",
        "group_table",
        "analysis_tables",
        "evaluation_tables",
        "top_images",
        "charts",
        "inline_svg",
        "text_parts",
        "sample",
        "sample_source",
        "store_facts",
        "labels",
        "targets_and_epochs",
        "sections",
        "cards",
        "template",
        "target_panels",
        "page",
        "write",
    ],
    "analysis": [
        "concentration",
        "group_influence",
        "evolution",
        "trajectories",
        "distribution",
        "scales",
        "transition",
        "costs_over_epochs",
        "changepoint",
        "training_dynamics",
        "properties",
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
            assert RANKS[here] >= RANKS["cli"], f"{path} imports the package's public names"
            continue
        assert (here, there) not in APART, f"{path} imports {'.'.join(parts)}"
        assert there == here or RANKS[there] < RANKS[here], f"{path} imports {'.'.join(parts)}"


@pytest.mark.parametrize("folder", ORDER)
def test_a_file_imports_only_earlier_files_of_its_folder(folder: str) -> None:
    order, above = ORDER[folder], folder.split("/")
    for path in sorted((ROOT / folder).rglob("*.py")):
        own, *below = path.relative_to(ROOT / folder).with_suffix("").parts
        if own == "__init__" or below == ["__init__"]:
            continue
        assert own in order, f"{path} has no place in the order of {folder}"
        for there in imports(path):
            if there[: len(above)] == above and there[len(above) :]:
                other = there[len(above)]
                later = other in order and order.index(other) > order.index(own)
                assert not later, f"{path} imports {'.'.join(there)}"
