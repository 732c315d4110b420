"""Compiles the kernels for GPUs that are not there: a line for each, with what it uses.

python tests/features/compile_kernels.py [80 90 100]
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trakstore.features.projectors.triton import (
    fold,
    partial_sums,
    position_sums,
    shear,
    signs,
    sparse,
)

TYPES = {
    **dict.fromkeys(("tile", "partial", "signs", "signs2", "windows", "out"), "*fp32"),
    **dict.fromkeys(("row_factors", "factors"), "*fp32"),
    **dict.fromkeys(("position_offsets", "column_offsets"), "*i32"),
    **dict.fromkeys(("pairs", "index", "first", "shifts", "places", "starts", "listed"), "*i32"),
    **dict.fromkeys(("left", "right", "merged", "gradient", "x"), "*bf16"),
    **dict.fromkeys(("products", "sums", "gradients", "tiles", "mean", "variance"), "*fp32"),
    **dict.fromkeys(("inside_bits", "column_bits"), "*i32"),
    **dict.fromkeys(("scale", "eps"), "fp32"),
}
UNEVEN = ("positions", "rest", "batch", "count", "groups", "column_tiles", "shares", "dim")
PRODUCTS = ("wgmma", "tcgen05.mma", "mma.sync")  # of tensor cores, by generation
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


def compiled(label: str, kernel: Any, warps: int, target: int, **given: Any) -> None:
    """Arguments are 32-bit numbers but for pointers, which are aligned as torch's are.

    Strides are multiples of 16 where products need them to be.
    """
    options = {"num_warps": warps, **{n: given.pop(n) for n in ("maxnreg",) if n in given}}
    names = kernel.arg_names
    lists = kernel in (signs._draw_pairs, shear._merge)  # which have rows as a list
    types = {**TYPES, "rows": "*i32"} if lists else TYPES
    if kernel is sparse._sketch_tiles:
        types = {**TYPES, "shares": "*i32"}
    signature = {n: "constexpr" if n in given else types.get(n, "i32") for n in names}
    values = {(names.index(name),): value for name, value in given.items()}
    whole = [n for n in names if signature[n].startswith("*")]
    if kernel in (shear._shear, shear._merge):
        whole += [n for n in names if signature[n] == "i32" and n not in UNEVEN]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in whole}
    source = ASTSource(kernel, signature, values, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    order = re.search(r"blocked<.*order = \[(.*?)\]", made.asm["ttgir"])
    product = next(
        (one for one in ("wgmma", "tcgen05.mma", "mma.sync") if one in made.asm["ptx"]), "none"
    )
    registers, spilled = resources(made.asm["cubin"])
    print(f"sm_{target} {label}: product {product}, {registers} registers, {spilled} bytes spilled, "
          f"{made.metadata.shared} bytes shared, order {order and order[1]}", flush=True)  # fmt: skip


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes that did not fit in them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "--dump-resource-usage", file.name]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert used
    return int(used[1]), int(used[2])


def every_kernel(target: int) -> None:
    """Each kernel, as it is used."""
    sizes = {"SAMPLES": 8, "FEATURES": 128, "SCALED": False}
    compiled("sketch", sparse._sketch, 1, target, GATHERED=False, **sizes)
    compiled("sketch of one run", sparse._sketch, 1, target, GATHERED=False, runs=1, **sizes)
    compiled("sketch of gathered rows", sparse._sketch, 1, target, GATHERED=True, **sizes)
    scaled = {**sizes, "SCALED": True}
    compiled("sketch of scaled rows", sparse._sketch, 1, target, GATHERED=False, **scaled)
    compiled(
        "sketch of many tiles", sparse._sketch_tiles, 1, target, SHARE=12, SAMPLES=8, FEATURES=128
    )
    compiled("partial sums", partial_sums._add, 4, target, FEATURES=128, SHARES=16)
    tile = {"WORDS": 64, "SAMPLES": 64, "ENTRIES": 32, "CHAIN": 128, "OPERAND": tl.bfloat16}
    compiled("products", signs._products, 4, target, **tile)
    few = {**tile, "WORDS": 16, "SAMPLES": 16}
    compiled("products for few features", signs._products, 1, target, **few)
    compiled("pairs", signs._draw_pairs, 4, target, LISTED=False, N=1024)
    compiled("pairs of listed rows", signs._draw_pairs, 4, target, LISTED=True, N=1024)
    compiled("merged rows", shear._merge, 4, target, by_row=1, SLOTS=128, POSITIONS=16)
    compiled("sums over positions", position_sums._sums, 4, target, by_kept=1, x_by_kept=1,
             NORMALISED=False, SUMS=True, KEPT=64, POSITIONS=64)  # fmt: skip
    compiled("sums of normalised activations", position_sums._sums, 4, target, by_position=1,
             x_by_position=1, NORMALISED=True, SUMS=True, KEPT=64, POSITIONS=64)  # fmt: skip
    product = {"COLUMNS": 128, "STEP": 64, "WINDOW": 256, "OPERAND": tl.bfloat16}
    sheared = {
        "SHEARED": True,
        "TILES": 1,
        "ROWS": 128,
        "left_by_row": 1,
        "maxnreg": 128,
        **product,
    }
    dense = {"INDEXED": False, "MASKED": False, "by_column": 1}
    for group in (64, 16):
        label = f"sheared products, groups of {group}"
        compiled(label, shear._shear, 8, target, GROUP=group, **dense, **sheared)
    if target >= 90:
        sheared["TILES"] = 4
        compiled("sheared products in turn", shear._shear, 8, target, GROUP=32, **dense, **sheared)
    places = {"INDEXED": True, "MASKED": True, "by_position": 0, "by_column": 0}
    label = "sheared products of an input"
    compiled(label, shear._shear, 8, target, GROUP=32, **places, **sheared)
    one = {"SHEARED": False, "TILES": 1, "ROWS": 64, "GROUP": 64, "left_by_position": 1, **product}
    compiled("products of an input", shear._shear, 4, target, **places, **one)
    tile = {"ROWS": 128, "COLUMNS": 128, "TILES": 1, "GROUP": 32, "WINDOW": 256, "maxnreg": 128}
    compiled("sheared gradients", shear._shear_formed, 8, target, **tile)
    folded = {"FEATURES": 128, "LISTED": 16}
    compiled("folded windows", fold._fold, 4, target, **folded)


if __name__ == "__main__":
    for one in sys.argv[1:] or ("90",):
        every_kernel(int(one))
