"""Functions that compute something else are other outputs; the same ones are not, in any process."""

from __future__ import annotations

import copy
import functools
import importlib
import logging
import operator
import os
import subprocess
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trakstore as ts
from trakstore.errors import SpecMismatchError, TrakStoreError
from trakstore.features import RowOutputs, featurize
from trakstore.features.outputs import FunctionOutput, as_output
from trakstore.features.outputs.function_identity import code_digest, function_name

Output = Callable[[Any, Any], Any]


def with_closure(held: Any) -> Output:
    return lambda model, batch: model(batch[0]) * held


def with_default(held: Any) -> Output:
    def output(model: Any, batch: Any, scale: Any = held) -> Any:
        return model(batch[0]) * scale

    return output


def with_keyword(held: Any) -> Output:
    def output(model: Any, batch: Any, *, scale: Any = held) -> Any:
        return model(batch[0]) * scale

    return output


def scaled(model: Any, batch: Any, scale: Any) -> Any:
    return model(batch[0]) * scale


def with_partial(held: Any) -> Output:
    return functools.partial(scaled, scale=held)


def with_positions(held: Any) -> Output:
    return functools.partial(lambda scale, model, batch: scaled(model, batch, scale), held)


class Scaled:
    def __init__(self, scale: Any) -> None:
        self._scale = scale

    def __call__(self, model: Any, batch: Any) -> Any:
        return model(batch[0]) * self._scale

    def method(self, model: Any, batch: Any) -> Any:
        return self(model, batch)


class Slotted:
    __slots__ = ("scale",)

    def __init__(self, scale: Any) -> None:
        self.scale = scale

    def __call__(self, model: Any, batch: Any) -> Any:
        return model(batch[0]) * self.scale


class Module(nn.Module):
    def __init__(self, scale: Any) -> None:
        super().__init__()
        self._scale = scale

    def forward(self, model: Any, batch: Any) -> Any:
        return model(batch[0]) * self._scale


def with_attribute(held: Any) -> Output:
    def output(model: Any, batch: Any) -> Any:
        return model(batch[0]) * output.scale  # type: ignore[attr-defined]

    output.scale = held  # type: ignore[attr-defined]
    return output


def decorated(held: Any) -> Output:
    inner = with_closure(held)

    @torch.no_grad()
    @functools.wraps(inner)
    def outer(model: Any, batch: Any) -> Any:
        return inner(model, batch)

    return outer


def with_method(held: Any) -> Output:
    return Scaled(held).method


MAKERS: list[Callable[[Any], Output]] = [
    with_closure,
    with_default,
    with_keyword,
    with_partial,
    with_positions,
    with_attribute,
    with_method,
    decorated,
    Scaled,
    Slotted,
    Module,
]


@dataclass
class Settings:
    scale: float


def linear(value: float) -> nn.Module:
    module = nn.Linear(2, 2)
    nn.init.constant_(module.weight, value)
    nn.init.zeros_(module.bias)
    return module


# two values that compute differently, made anew at each call
VALUES: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "int": (lambda: 1, lambda: 2),
    "int and bool": (lambda: 1, lambda: True),
    "text": (lambda: "mean", lambda: "sum"),
    "None": (lambda: None, lambda: 0),
    "tensor": (lambda: torch.ones(3), lambda: torch.tensor([1.0, 1, 2])),
    "bfloat16": (lambda: torch.ones(3).bfloat16(), lambda: torch.zeros(3).bfloat16()),
    "dtype": (lambda: torch.ones(2), lambda: torch.ones(2).double()),
    "sparse": (lambda: torch.eye(2).to_sparse(), lambda: (2 * torch.eye(2)).to_sparse()),
    "array": (lambda: np.arange(3), lambda: np.arange(3)[::-1]),
    "array of objects": (lambda: np.array(["a", None]), lambda: np.array(["b", None])),
    "numpy number": (lambda: np.float32(1), lambda: np.float32(2)),
    "list": (lambda: [1, [2, 3]], lambda: [1, [2], 3]),
    "dict": (lambda: {"a": 1, "b": {2, 3}}, lambda: {"a": 1, "b": {2, 4}}),
    "function": (lambda: with_closure(1), lambda: with_closure(2)),
    "built in": (lambda: torch.sin, lambda: torch.cos),
    "loss module": (
        lambda: nn.CrossEntropyLoss(label_smoothing=0.1, reduction="none"),
        lambda: nn.CrossEntropyLoss(label_smoothing=0.2, reduction="none"),
    ),
    "weights of classes": (
        lambda: nn.CrossEntropyLoss(torch.ones(3)),
        lambda: nn.CrossEntropyLoss(torch.ones(3) * 2),
    ),
    "teacher": (
        lambda: nn.Sequential(linear(1), nn.ReLU()),
        lambda: nn.Sequential(linear(2), nn.ReLU()),
    ),
    "architecture": (
        lambda: nn.Sequential(linear(1), nn.ReLU()),
        lambda: nn.Sequential(linear(1), nn.Tanh()),
    ),
    "namespace": (lambda: Namespace(scale=1), lambda: Namespace(scale=2)),
    "settings": (lambda: Settings(1), lambda: Settings(2)),
    "object": (lambda: Scaled([1]), lambda: Scaled([2])),
    "member": (lambda: HTTPStatus.OK, lambda: HTTPStatus.ACCEPTED),
    "cached": (lambda: functools.cache(with_closure(1)), lambda: functools.cache(with_closure(2))),
    "vectorised": (
        lambda: np.vectorize(with_closure(1)),
        lambda: np.vectorize(with_closure(2)),
    ),
    "method": (lambda: Scaled(1).method, lambda: Scaled(2).method),
}


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("make", MAKERS)
def test_what_a_function_holds_tells_it_from_others(make: Any, values: Any) -> None:
    one, other = values
    assert code_digest(make(one())) == code_digest(make(one()))
    assert code_digest(make(one())) != code_digest(make(other()))


SCRIPT = """
import functools, random
import torch
from torch import nn
from helpers import power, NAMES
import helpers
KINDS = {{"a", "b", "c"}}
FACTOR = {factor}
calls = 0
device = torch.device("{device}")
class Base:
    offset = {offset}
    @property
    def one(self):
        return {one}
class Used(Base):
    def __call__(self, x):
        return x + self.offset + self.one
def helper(x):
    return {helper}
def output(model, batch):
    {doc}
    global calls
    calls += 1
    return helper(model(batch[0].to(device)) * FACTOR) + (1 if "a" in {{"a", "b"}} else 0)
def through(model, batch):
    return Used()(power(model(batch[0]))) + helpers.other(batch) + len(KINDS) + len(NAMES)
first, second = lambda m, b: m(b[0]).sum(1), lambda m, b: m(b[0]).{reduced}(1)
"""
HELPERS = """
NAMES = {{"x": {names}}}
def inner(x):
    return x ** {power}
def power(x):
    return inner(x)
def other(batch):
    return {other}
def unused(batch):
    return {unused}
"""
PLAIN = {
    "factor": "2",
    "device": "cpu",
    "offset": "1",
    "one": "1",
    "helper": "x.sum(1)",
    "doc": '"""An output."""',
    "reduced": "mean",
    "names": "1",
    "power": "2",
    "other": "0",
    "unused": "1",
}
CHANGES: dict[str, set[str]] = {  # which functions another text makes others
    "factor": {"output"},
    "helper": {"output"},
    "offset": {"through"},
    "one": {"through"},
    "names": {"through"},
    "power": {"through"},
    "other": {"through"},
    "reduced": {"second"},
    "device": set(),
    "doc": set(),
    "unused": set(),
}
OTHERS = {"reduced": "amax", "helper": "x.amax(1)", "device": "cuda:1", "doc": '"""Other words."""'}
NAMES = ("output", "through", "first", "second")


def written(folder: Path, **changed: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "script.py").write_text(SCRIPT.format(**PLAIN | changed))
    (folder / "helpers.py").write_text(HELPERS.format(**PLAIN | changed))
    return folder


def digests(folder: Path, patch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of the functions of a script, run anew."""
    patch.syspath_prepend(str(folder))
    for name in ("helpers", "script"):
        patch.delitem(sys.modules, name, raising=False)
        script = importlib.import_module(name)
        patch.setitem(sys.modules, name, sys.modules.pop(name))  # not for other tests
    return {name: code_digest(getattr(script, name)) for name in NAMES}


@pytest.mark.parametrize("edit", CHANGES)
def test_edits_are_seen_wherever_they_are_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edit: str
) -> None:
    plain = digests(written(tmp_path / "plain"), monkeypatch)
    edited = written(tmp_path / "edited", **{edit: OTHERS.get(edit, "7")})
    found = digests(edited, monkeypatch)
    assert len(set(plain.values())) == len(NAMES)
    assert {name for name in NAMES if found[name] != plain[name]} == CHANGES[edit]


def test_another_process_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has another order of sets."""
    here = digests(written(tmp_path / "plain"), monkeypatch)
    code = (
        "import script; from trakstore.features.outputs.function_identity import code_digest\n"
        f"for name in {NAMES}: print(name, code_digest(getattr(script, name)))"
    )
    places = [str(tmp_path / "plain"), str(Path(ts.__file__).parents[1])]
    path = {"PYTHONPATH": os.pathsep.join(places), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | path, check=True
    )
    assert dict(line.split(" ", 1) for line in done.stdout.splitlines()) == here


def test_scripted_functions_and_what_leads_to_itself() -> None:
    def twice(x: Tensor) -> Tensor:
        return x * 2

    def thrice(x: Tensor) -> Tensor:
        return x * 3

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        one, other = torch.jit.script(twice), torch.jit.script(thrice)
    assert code_digest(with_closure(one)) != code_digest(with_closure(other))

    def ring(size: int) -> Output:
        held: list[Any] = list(range(size))
        held.append(held)

        def output(model: Any, batch: Any) -> Any:
            return output(model, held or batch)

        return output

    assert code_digest(ring(2)) == code_digest(ring(2)) != code_digest(ring(3))


def test_devices_and_logs_and_what_is_odd_do_not_count() -> None:
    class Odd:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    log = logging.getLogger("an output's")

    def logged(model: Any, batch: Any) -> Any:
        log.debug("%s", Odd())
        return model(batch)

    before = code_digest(logged)
    logged(id, 1)
    assert code_digest(logged) == before
    held = [("cpu", Odd(), nn.LazyLinear(2)), (torch.device("cuda:1"), Odd(), nn.LazyLinear(2))]
    assert code_digest(with_closure(held[0])) == code_digest(with_closure(held[1]))


class Rows(list[Any]):
    pass


def rows(n: int = 6) -> Rows:
    generator = torch.Generator().manual_seed(0)
    return Rows((torch.randn(4, generator=generator), at % 3) for at in range(n))


def stored(output: Any, where: Path, split: str = "train") -> np.ndarray[Any, Any]:
    torch.manual_seed(0)
    featurize(
        nn.Linear(4, 3),
        rows(),
        where,
        split=split,
        output=output,
        projector=ts.ProjectionSpec("identity"),
        progress=False,
    )
    return np.asarray(ts.open_store(where).features(0, split).values)


def weighted(model: Any, batch: Any, weight: Tensor) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], weight=weight, reduction="none")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (operator.itemgetter(0), operator.itemgetter(1)),
        (operator.attrgetter("loss"), operator.attrgetter("logits")),
        (operator.methodcaller("sum", dim=0), operator.methodcaller("sum", dim=1)),
    ],
)
def test_what_a_getter_gets_is_part_of_an_output(one: Any, other: Any) -> None:
    def reading(get: Any) -> Output:
        return lambda model, batch: get(model(batch[0]))

    assert code_digest(reading(one)) == code_digest(reading(copy.deepcopy(one)))
    assert code_digest(reading(one)) != code_digest(reading(other))


def test_partials_and_objects_are_outputs(tmp_path: Path) -> None:
    weight = torch.tensor([1.0, 2.0, 3.0])
    wanted = stored(lambda m, b: weighted(m, b, weight), tmp_path / "a")
    np.testing.assert_array_equal(
        stored(functools.partial(weighted, weight=weight), tmp_path / "b"), wanted
    )

    class Weighted:
        def __call__(self, model: Any, batch: Any) -> Tensor:
            return weighted(model, batch, weight)

    np.testing.assert_array_equal(stored(Weighted(), tmp_path / "c"), wanted)
    assert function_name(functools.partial(weighted)) == "partial(weighted)"
    assert function_name(Weighted()).endswith("Weighted")


def test_another_function_of_the_same_name_is_refused_with_both(tmp_path: Path) -> None:
    first, second = lambda m, b: m(b[0])[:, 0], lambda m, b: 5 * m(b[0])[:, 1]
    stored(first, tmp_path / "s")
    stored(first, tmp_path / "s", "valid")
    codes = [code_digest(one) for one in (first, second)]
    with pytest.raises(
        SpecMismatchError, match=f"{codes[0]}.*this run has.*{codes[1]}.*or .*FunctionOutput"
    ):
        stored(second, tmp_path / "s", "test")


def test_a_name_that_is_given_is_all_that_counts(tmp_path: Path) -> None:
    for scale, split in ((1, "train"), (2, "test")):
        stored(FunctionOutput(with_closure_first(scale), name="mine"), tmp_path / "s", split)
    spec = ts.open_store(tmp_path / "s").spec.output
    assert spec is not None and spec.options == (("function", "mine"),)
    with pytest.raises(TrakStoreError, match="name must be a string"):
        FunctionOutput(with_closure(1), name="")


def with_closure_first(held: Any) -> Output:
    return lambda model, batch: model(batch[0])[:, 0] * held


def test_what_a_function_gives() -> None:
    model, batch = nn.Linear(4, 3), (torch.ones(2, 4), torch.zeros(2).long())
    cases: list[tuple[Output, str]] = [
        (lambda m, b: {"loss": m(b[0])}, "<lambda> gives dict"),
        (lambda m, b: (m(b[0]), 3), "gives Tensor, int"),
        (
            lambda m, b: m(b[0]),
            r"one tensor of shape \(2,\).*gives \[\(2, 3\), \(2, 3\), \(2, 3\)\]",
        ),
    ]
    for function, message in cases:
        with pytest.raises(TrakStoreError, match=message):
            as_output(function).check(model, batch)
    half = as_output(lambda m, b: RowOutputs(*m(b[0]).bfloat16().T))(model, batch)
    assert {one.dtype for one in half} == {torch.float32}
