"""Compiles the kernels for an H100, with or without one: a line each of what came out."""

from __future__ import annotations

import re
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from trakstore.features.projectors.triton.signs import _draw_pairs, _products
from trakstore.features.projectors.triton.sparse import _sketch

POINTERS = {"tile": "*fp32", "partial": "*fp32", "pairs": "*i32", "rows": "i32", "index": "*i32"}


def compiled(label: str, kernel: Any, warps: int, **constants: Any) -> None:
    """Arguments are 32-bit numbers but for pointers, which are aligned as torch's are."""
    types = {**POINTERS, "rows": "*i32"} if kernel is _draw_pairs else POINTERS
    names = kernel.arg_names
    signature = {n: "constexpr" if n in constants else types.get(n, "i32") for n in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    aligned = [i for i, name in enumerate(names) if signature[name].startswith("*")]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(kernel, signature, values, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    order = re.search(r"blocked<.*order = \[(.*?)\]", made.asm["ttgir"])
    used = "wgmma" if "wgmma" in made.asm["ptx"] else "no wgmma"
    print(f"{label}: {used}, order {order and order[1]}")


def main() -> None:
    """Each kernel, as it is used."""
    sizes = {"SAMPLES": 8, "FEATURES": 128}
    compiled("sketch", _sketch, 1, GATHERED=False, **sizes)
    compiled("sketch of one run", _sketch, 1, GATHERED=False, runs=1, **sizes)
    compiled("sketch of gathered rows", _sketch, 1, GATHERED=True, **sizes)
    tile = {"WORDS": 64, "SAMPLES": 64, "ENTRIES": 32, "OPERAND": tl.bfloat16}
    compiled("products", _products, 4, **tile)
    compiled("products for few features", _products, 1, **{**tile, "WORDS": 16, "SAMPLES": 16})
    compiled("pairs", _draw_pairs, 4, LISTED=False, N=1024)
    compiled("pairs of listed rows", _draw_pairs, 4, LISTED=True, N=1024)


if __name__ == "__main__":
    main()
