"""Bytes, operations and launches of one batch on a GPU, counted without one, on meta tensors.

    python benchmarks/counts.py [--small] [--json FILE]

Every operation that torch would start on a GPU counts as a launch, with the bytes of the tensors
that it reads and writes; a view counts nothing, nor does what has no entries. A kernel of the
projectors counts once, with its tensors and operations. From both follows a time, that of the
slower of memory and arithmetic for each launch, at speeds an H100 has shown: 2.9 TB/s, 500 TFLOP/s
in bfloat16 and 50 in float32. It is arithmetic, and no measurement: no card has confirmed it. All
is beside the same count of forward and backward passes.

Counted in November 2026 (launches, GB, ms): first, when products were sheared on the chip, and now,
when small gradients and small products wait for one another, batch norms and zeros around images are
not written, and few positions are done in turn:

========================================  =====================  =====================  ============
batch, dtype, dim                         first / sheared        now                    plain passes
========================================  =====================  =====================  ============
Llama-like 1.1e9, bfloat16, 4,096: sjlt   3,593 / 2,811          2,701 / 133 / 83.3     2,607 / 124 /
  kronecker                               3,923 / 2,878          2,660 / 119 / 70.7     86.2
GPT-2-like 1.6e8, bfloat16, 2,048: sjlt   1,069 / 602            596 / 40.6 / 21.0      481 / 34.8 /
  kronecker                               1,233 / 640            594 / 36.1 / 18.6      21.0
GPT-2-like, float32, 2,048: sjlt          1,067 / 677            673 / 83.4 / 132       481 / 69.5 /
  kronecker                               1,133 / 638            592 / 71.6 / 110       148
ResNet-18, float32, 2,048: sjlt           515 / 326              288 / 12.2 / 7.18      165 / 2.87 /
  kronecker                               508 / 284              241 / 3.61 / 3.90      4.93
ResNet-18, bfloat16, 2,048: sjlt          516 / 283              231 / 2.90 / 1.15      165 / 1.43 /
  kronecker                               551 / 307              264 / 2.22 / 1.03      0.776
========================================  =====================  =====================  ============

Llama's own forward and half backward pass has 2,360 launches: sjlt has 1.14 times as many, kronecker
1.13 times (1.22 before its products waited, and query, key and value shared one of their input). To lay
many tensors behind one another counts as one launch; torch takes one for each 64 to 128 of them.
ResNet-18 in bfloat16 takes 1.49 times its plain pass, where it took 1.93 (3.90 GB, 1.50 ms).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from models import NextToken, Transformer, resnet18
from torch import Tensor, nn
from torch.utils import _pytree as tree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import trakstore as ts
from trakstore.features.constants import find_constants
from trakstore.features.factorised import FactorisedEngine
from trakstore.features.outputs import as_output
from trakstore.features.parameters import parameter_spec, select_parameters
from trakstore.features.projectors import make_projector, rademacher, sjlt
from trakstore.spec import ProjectionSpec

MEMORY, LOW, HIGH = 2.9e12, 500e12, 50e12  # bytes and operations a second
META, CPU = torch.device("meta"), torch.device("cpu")


@dataclass
class Count:
    """What a batch takes, and about how many seconds."""

    launches: int = 0
    bytes: float = 0.0
    operations: float = 0.0
    seconds: float = 0.0

    def add(
        self, tensors: list[Tensor], operations: float = 0.0, moved: float | None = None
    ) -> None:
        """Count one launch; of a tensor that is given twice, or expanded, its memory once."""
        each = {
            one.data_ptr() or id(one): min(one.nbytes, one.untyped_storage().nbytes())
            for one in tensors
        }
        bytes_ = sum(each.values()) if moved is None else moved
        low = any(one.dtype in (torch.bfloat16, torch.float16) for one in tensors)
        self.launches += 1
        self.bytes += bytes_
        self.operations += operations
        self.seconds += max(bytes_ / MEMORY, operations / (LOW if low else HIGH))


class Counting(TorchDispatchMode):
    """Counts what torch starts."""

    def __init__(self, count: Count) -> None:
        super().__init__()
        self.count = count

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        views = [r for r in func._schema.returns if r.alias_info and not r.alias_info.is_write]
        tensors = [t for t in tree.tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        meta = [t for t in tensors if t.device == META]
        free = views or func._overloadpacket in FREE or not any(t.numel() for t in meta)
        if not free:
            self.count.add(meta, operations_of(func, args, out))
        return out


FREE = {
    getattr(torch.ops.aten, name)
    for name in ("empty", "empty_like", "new_empty", "empty_strided", "detach", "_unsafe_view",
                 "_reshape_alias", "lift_fresh", "sym_size", "new_empty_strided")
    if hasattr(torch.ops.aten, name)
}  # fmt: skip


def operations_of(func: Any, args: Any, out: Any) -> float:
    packet = func._overloadpacket
    if packet not in flop_registry:
        return 0.0
    aten = torch.ops.aten
    if packet in (aten.mm, aten.bmm):
        args = args[:2]  # the third is the dtype of the sums
    return float(flop_registry[packet](*args, out_val=out))


class Kernel:
    """A kernel that is counted where it would be launched."""

    def __init__(
        self, count: Count, of: Callable[[tuple[Any, ...]], tuple[float, float | None]]
    ) -> None:
        self.count, self.of = count, of

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **_: Any) -> None:
            self.count.add([a for a in args if isinstance(a, Tensor)], *self.of(args))

        return launch


def signs_operations(args: tuple[Any, ...]) -> tuple[float, float | None]:
    # Two products in 16 bits for each entry, sample and feature.
    batch, count, words = args[3], args[4], args[5]
    return 4.0 * batch * count * words * 32 * HIGH / LOW, None


def sheared_operations(args: tuple[Any, ...]) -> tuple[float, float | None]:
    from trakstore.features.projectors.sheared import COLUMNS, ROWS

    left, places, positions, rows, columns = args[0], args[14], *args[17:20]
    entries = rows * columns
    if not places.is_meta:  # tables are on the CPU, so that they have numbers
        entries = ROWS * int((-(-places[:, 1] // COLUMNS) * COLUMNS).sum())
    return 2.0 * len(left) * positions * entries, None


def nothing(_: tuple[Any, ...]) -> tuple[float, float | None]:
    return 0.0, None


def fused_attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Tensor:
    """Attention as one kernel, as on a GPU; torch has several on meta tensors."""
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    return out


@contextlib.contextmanager
def kernels_counted(count: Count) -> Iterator[None]:
    """Have projectors take a GPU's way on meta tensors, with tables that have numbers."""
    from trakstore.features.projectors.triton import signs, sparse

    places: list[tuple[Any, str, Any]] = [
        (sparse, "_sketch", nothing),
        (sparse, "_sketch_tiles", nothing),
        (signs, "_draw_pairs", nothing),
        (signs, "_products", signs_operations),
    ]
    on_meta: list[Any] = [sjlt, rademacher]
    with contextlib.suppress(ImportError):  # of trees before these kernels
        from trakstore.features.layers import summed_positions
        from trakstore.features.projectors.triton import (
            fold,
            listed,
            partial_sums,
            position_sums,
            shear,
        )

        on_meta.append(summed_positions)
        places.append((position_sums, "_sums", nothing))
        places += [(listed, "_add", nothing), (partial_sums, "_add", nothing)]
        places += [(shear, "_merge", nothing), (shear, "_shear", sheared_operations)]
        places += [(shear, "_shear_formed", nothing), (fold, "_fold", nothing)]
    with contextlib.ExitStack() as stack:
        for module, name, of in places:
            stack.enter_context(mock.patch.object(module, name, Kernel(count, of)))
        for module in on_meta:
            stack.enter_context(
                mock.patch.object(module, "usable", lambda device, _=7: device == META)
            )
        if hasattr(sjlt, "Sheared"):
            made = sjlt.Sheared.of
            stack.enter_context(
                mock.patch.object(
                    sjlt.Sheared, "of", lambda tables, k, _, turn: made(tables, k, CPU, turn)
                )
            )
        yield


@dataclass(frozen=True)
class Case:
    """A model on meta tensors, with a batch."""

    name: str
    model: nn.Module
    output: Any
    batch: Any

    def plain(self) -> Count:
        """Count forward and backward passes of the mean."""
        count = Count()
        with Counting(count):
            torch.autograd.grad(
                self.output(self.model, self.batch).output.mean(), list(self.model.parameters())
            )
        return count

    def half(self) -> Count:
        """Count forward and backward passes without gradients of weights."""
        count = Count()
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        first = next(m for m in self.model.modules() if isinstance(m, nn.Embedding | nn.Conv2d))
        handle = first.register_forward_hook(lambda *given: given[2].requires_grad_())
        with Counting(count):
            self.output(self.model, self.batch).output.sum().backward()
        handle.remove()
        for parameter in self.model.parameters():
            parameter.requires_grad_(True)
        return count

    def features(self, spec: ProjectionSpec) -> Count:
        """Count a batch of features, with tables made before."""
        selected = select_parameters(self.model, ("*",))
        projector = make_projector(spec, parameter_spec(selected, ("*",)))
        engine = FactorisedEngine(self.model, self.output, selected, projector)
        # All of the preparation but comparing numbers, which there are not.
        first = tree.tree_map(lambda tensor: tensor[:2], self.batch)
        engine._constants = find_constants(engine._forward, first, frozenset(engine._names))
        engine._prepared, count = True, Count()
        with kernels_counted(count):
            engine.rows(self.batch)
            generic = engine._warned
            count.__init__()  # type: ignore[misc]
            with Counting(count):
                engine.rows(self.batch)
        if generic:
            print(f"  {len(generic)} parameters are not in this: {sorted(generic)[:3]}")
        return count


def llama(small: bool, dtype: torch.dtype = torch.bfloat16) -> Case:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
    }
    sizes |= {"num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000}
    if small:
        sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 1}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256}
    with META:
        config = LlamaConfig(**sizes, max_position_embeddings=2048, tie_word_embeddings=False)
        model = LlamaForCausalLM(config).to(dtype).eval()
        ids = torch.zeros((2, 16) if small else (8, 512), dtype=torch.int64)
    return Case("Llama-like, batch 8 x 512", model, as_output("causal_lm"), {"input_ids": ids})


def gpt2(small: bool, dtype: torch.dtype = torch.bfloat16) -> Case:
    with META:
        shape = {} if small else {"width": 768, "layers": 12, "vocabulary": 50257, "heads": 12}
        model = Transformer(**shape).to(dtype).eval()
        ids = torch.zeros((2, 16) if small else (16, 512), dtype=torch.int64)
    return Case("GPT-2-like, batch 16 x 512", model, NextToken(), (ids, ids))


def resnet(small: bool, dtype: torch.dtype = torch.float32) -> Case:
    with META:
        model = resnet18(4 if small else 64).to(dtype).eval()
        size = 2 if small else 64
        x, y = torch.zeros(size, 3, 32, 32, dtype=dtype), torch.zeros(size, dtype=torch.int64)
    return Case("ResNet-18, batch 64", model, as_output("cross_entropy"), (x, y))


def specs(dim: int) -> dict[str, ProjectionSpec]:
    # Dense signs of an embedding go through torch.unique, which meta tensors do not have.
    return {
        "sjlt": ProjectionSpec("sjlt", dim=dim),
        "kronecker": ProjectionSpec("kronecker", dim=dim, side=16),
    }


def shown(name: str, one: Count, beside: Count) -> str:
    return (
        f"  {name}: {one.launches:,} launches ({one.launches / beside.launches:.2f}), "
        f"{one.bytes / 1e9:.3g} GB ({one.bytes / beside.bytes:.2f}), "
        f"{one.operations / 1e12:.3g} TFLOP, {1e3 * one.seconds:.3g} ms by arithmetic "
        f"({one.seconds / beside.seconds:.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--small", action="store_true", help="tiny models, to see that it runs")
    parser.add_argument("--json", type=Path, help="file for the counts")
    options = parser.parse_args()
    library = torch.library.Library("aten", "IMPL")
    library.impl("scaled_dot_product_attention", fused_attention, "AutogradMeta")
    logging.disable(logging.INFO)
    print(f"trakstore {ts.__version__}, counted on meta tensors; in brackets beside plain passes")
    cases: list[tuple[Callable[..., Case], torch.dtype, int]] = [
        (llama, torch.bfloat16, 4096),
        (gpt2, torch.bfloat16, 2048),
        (gpt2, torch.float32, 2048),
        (resnet, torch.float32, 2048),
        (resnet, torch.bfloat16, 2048),
    ]
    kept: dict[str, dict[str, Any]] = {}
    for make, dtype, dim in cases:
        case = make(options.small, dtype)
        count = sum(p.numel() for p in case.model.parameters())
        name = f"{case.name}, {str(dtype).removeprefix('torch.')}"
        dim = 256 if options.small else dim
        print(f"{name}: {count:,} parameters, dim {dim}", flush=True)
        plain = case.plain()
        own = kept.setdefault(name, {"plain": asdict(plain), "half": asdict(case.half())})
        print(shown("forward and backward", plain, plain))
        print(shown("without weights' gradients", Count(**own["half"]), plain), flush=True)
        for kind, spec in specs(dim).items():
            one = case.features(spec)
            own[kind] = asdict(one)
            print(shown(kind, one, plain), flush=True)
            if not math.isfinite(one.seconds):
                raise SystemExit("nothing was counted")
    if options.json:
        options.json.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
