"""Where the samples are: each rule against the function itself, one sample changed at a time."""

from __future__ import annotations

import importlib.util
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trakstore.features.axes import Axis, Following, Mark, Routed, Unplaced
from trakstore.features.axes.marks import reshaped

BATCH = 3
LOST, FREE, SUSPECT = Unplaced.LOST, Unplaced.FREE, Unplaced.SUSPECT


class Watched(TorchFunctionMode):
    """All functions that are called meanwhile are followed."""

    def __init__(self, following: Following) -> None:
        super().__init__()
        self.following = following

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # `types` is torch's
        kwargs = kwargs or {}
        return self.following.passed(func, args, kwargs, func(*args, **kwargs))


def placed(call: Callable[[Tensor], Tensor], *shape: int) -> Mark:
    """Mark of a function of a batch whose samples are first."""
    following = Following(BATCH)
    count = BATCH * math.prod(shape)
    batch = following.begin(torch.linspace(1, 0, count).view(BATCH, *shape))  # in no order
    with Watched(following):
        return following.of(call(batch))


PLACES: list[tuple[str, Callable[[Tensor], Tensor], Mark]] = [
    ("sum", lambda x: (x * 2 + 1).relu(), Axis(0)),
    ("broadcast", lambda x: x[:, :, None] + torch.ones(7, 1, 1, 1, 1), Axis(1)),
    ("in turn", lambda x: x.transpose(0, 1), Axis(1)),
    ("permuted", lambda x: x.permute(2, 0, 1), Axis(1)),
    ("turned", lambda x: x[:, 0].T, Axis(1)),
    ("moved", lambda x: x.movedim(0, -1), Axis(2)),
    ("merged", lambda x: x.reshape(-1, 5), Axis(0, 1, 4)),
    ("merged inside", lambda x: x.transpose(0, 1).reshape(-1, 5), Axis(0, 4, 1)),
    ("merged and back", lambda x: x.reshape(-1, 5).view(BATCH, 4, 5), Axis(0)),
    ("in the middle", lambda x: x.permute(1, 0, 2).reshape(2, 2 * BATCH, 5), Axis(1, 2, 1)),
    ("twice", lambda x: torch.cat([x, x]), LOST),
    ("repeated", lambda x: x.repeat(2, 1, 1), Axis(0, 2, 1)),
    ("each twice", lambda x: x.repeat_interleave(2, 0), Axis(0, 1, 2)),
    ("beside", lambda x: torch.cat([x, torch.zeros(BATCH, 1, 5)], 1), Axis(0)),
    ("stacked", lambda x: torch.stack([x, x], 1), Axis(0)),
    ("stacked in front", lambda x: torch.stack([x, x]), Axis(1)),
    ("summed over time", lambda x: x.sum(1), Axis(0)),
    ("summed in front", lambda x: x.transpose(0, 1).mean(0), Axis(0)),
    ("softmax", lambda x: x.softmax(-1), Axis(0)),
    ("softmax over samples", lambda x: x.softmax(0), LOST),
    ("mean of samples", lambda x: x.mean(0), LOST),
    ("one number", lambda x: x.max(), LOST),
    ("scaled by one number", lambda x: x / x.max(), Axis(0)),
    ("flipped", lambda x: x.flip(0), LOST),
    ("rolled", lambda x: torch.roll(x, 1, 0), LOST),
    ("rolled in time", lambda x: torch.roll(x, shifts=1, dims=1), Axis(0)),
    ("some of the sorted", lambda x: x[x[:, 0, 0].argsort()][:2], LOST),
    ("sorted in time", lambda x: x.sort(1)[0], Axis(0)),
    ("sliced", lambda x: x[:, 1:3], Axis(0)),
    ("all of it", lambda x: x[0:BATCH], Axis(0)),
    ("some samples", lambda x: x[1:], LOST),
    ("one sample", lambda x: x[0], LOST),
    ("a list", lambda x: x[[0, 1, 2]], LOST),
    ("masked by another", lambda x: x[x[:, :, 0].flip(0) > 0.5], LOST),
    ("masked in a row", lambda x: x.masked_select(x > 0.5), LOST),
    ("own numbers", lambda x: x[torch.arange(BATCH), torch.tensor([0, 2, 1])], Axis(0)),
    (
        "own numbers, as masks of attention",
        lambda x: x[torch.arange(BATCH)[:, None, None, None], torch.arange(4)],
        Axis(0),
    ),
    (
        "own numbers in the middle",
        lambda x: x[torch.arange(BATCH)[:, None], torch.arange(2)[:, None, None]],
        Axis(1),
    ),
    (
        "own numbers beside one's own",
        lambda x: x[torch.arange(BATCH)[:, None], x[:, :, 0].argsort(1)],
        Axis(0),
    ),
    (
        "own numbers twice",
        lambda x: x[torch.arange(BATCH)[:, None], torch.arange(BATCH)[:, None]],
        LOST,
    ),
    (
        "own numbers turned",
        lambda x: x[torch.arange(BATCH).flip(0)[:, None], torch.arange(4)],
        LOST,
    ),
    ("others' numbers", lambda x: x[torch.tensor([1, 0, 2]), torch.tensor([0, 2, 1])], LOST),
    ("a new dimension", lambda x: x[:, None, ..., 0], Axis(0)),
    ("looped", lambda x: torch.stack(list(x)), LOST),
    ("loop over time", lambda x: torch.stack(list(x.transpose(0, 1)), 1), Axis(0)),
    ("split", lambda x: x.split([1, 3], 1)[1], Axis(0)),
    ("split samples", lambda x: torch.cat(x.split(1)), LOST),
    ("gathered", lambda x: x.gather(1, x.argsort(1)), Axis(0)),
    ("products", lambda x: x @ x.transpose(1, 2), Axis(0)),
    ("products with weights", lambda x: x @ torch.ones(5, 2), Axis(0)),
    ("weights in front", lambda x: torch.ones(2, 4) @ x, Axis(0)),
    ("samples with samples", lambda x: x[:, 0] @ x[:, 0].T, LOST),
    ("einsum", lambda x: torch.einsum("btd,bsd->tsb", x, x), Axis(2)),
    ("einsum of samples", lambda x: torch.einsum("btd,ctd->bc", x, x), LOST),
    ("einsum over samples", lambda x: torch.einsum("btd->td", x), LOST),
    ("expanded", lambda x: x.unsqueeze(0).expand(2, -1, -1, -1), Axis(1)),
    ("padded", lambda x: F.pad(x, (1, 1, 0, 2)), Axis(0)),
    ("padded samples", lambda x: F.pad(x, (0, 0, 0, 0, 0, 1)), LOST),
    ("attention", lambda x: F.scaled_dot_product_attention(x, x, x), Axis(0)),
    ("convolution", lambda x: F.conv1d(x, torch.ones(2, 4, 3)), Axis(0)),
    ("normalised", lambda x: F.layer_norm(x, (5,)), Axis(0)),
    ("batch statistics", lambda x: F.batch_norm(x, None, None, training=True), LOST),
    ("losses", lambda x: F.mse_loss(x, x * 0, reduction="none"), Axis(0)),
    ("mean loss", lambda x: F.mse_loss(x, x * 0), LOST),
    (
        "losses of classes",
        lambda x: F.cross_entropy(x.flatten(0, 1), x.argmax(2).flatten(), reduction="none"),
        Axis(0, 1, 4),
    ),
    (
        "losses of pixels",
        lambda x: F.cross_entropy(x.movedim(0, 2), torch.zeros(4, BATCH).long(), reduction="none"),
        Axis(1),
    ),
    ("unknown", lambda x: torch.cdist(x, x), LOST),
    ("constants", lambda x: torch.arange(x.shape[1]) * 2, FREE),
    ("zeros of its shape", torch.zeros_like, FREE),
    ("told", lambda x: torch.tensor(x[0].tolist()), SUSPECT),
    ("looked up", lambda x: torch.ones(9, 2)[x.long()], Axis(0)),
    (
        "looked up in columns",
        lambda x: torch.ones(2, 9).index_select(1, x[:, 0, 0].long()),
        Axis(1),
    ),
    ("columns by samples", lambda x: x.index_select(2, x[:, 0, 0].long()), LOST),
    ("filled by samples", lambda x: x.index_fill(2, x[:, 0, 0].long(), 0.0), LOST),
    ("filled by a constant", lambda x: x.index_fill(2, torch.tensor([1]), 0.0), Axis(0)),
    ("full of one number", lambda x: torch.full_like(x, x.max()), LOST),  # type: ignore[arg-type]
    ("full of a constant", lambda x: torch.full_like(x, 2.0), FREE),
    ("filled with one number", lambda x: torch.ones(BATCH, 4).fill_(x.max()), LOST),
    ("differences", lambda x: x.diff(dim=1, prepend=x[:, :1]), Axis(0)),
    ("differences of samples", lambda x: x.diff(dim=0), LOST),
]


@pytest.mark.parametrize(("call", "mark"), [p[1:] for p in PLACES], ids=[p[0] for p in PLACES])
def test_samples_are_followed(call: Callable[[Tensor], Tensor], mark: Mark) -> None:
    assert placed(call, 4, 5) == mark


def test_what_is_written_into_is_what_was_written() -> None:
    def filled(x: Tensor) -> Tensor:
        out = torch.zeros(2, BATCH, 4, 5)
        out[1] = x
        return out

    def mixed(x: Tensor) -> Tensor:
        out = torch.zeros(BATCH, 4, 5)
        out[x[:, 0, 0].argsort()] = x
        return out

    def through_a_view(x: Tensor) -> Tensor:
        out = torch.zeros(BATCH, 4, 5)
        view = out.view(-1, 5)
        view[x.flatten()[: BATCH * 4].argsort()] = x.reshape(-1, 5)
        return out

    def masked(x: Tensor) -> Tensor:
        out = x.clone()
        out[x[:, :, 0] > 0.5] = 0
        return out

    def in_another_place(x: Tensor) -> Tensor:
        out = x[:, :BATCH].clone()
        out.transpose(0, 1).copy_(x[:, :BATCH])
        return out

    def some_rows(x: Tensor) -> Tensor:
        out = torch.cat([x, x], 1).view(-1, 5)
        out[1 : 1 + BATCH].copy_(x[:, 0])
        return out

    def by_data(x: Tensor) -> Tensor:
        out = x.clone()
        out.data = x.flip(0)
        return out

    assert placed(filled, 4, 5) == Axis(1)
    assert placed(in_another_place, 4, 5) is LOST
    assert placed(some_rows, 4, 5) is LOST
    assert placed(by_data, 4, 5) is LOST
    assert placed(mixed, 4, 5) is LOST
    assert placed(through_a_view, 4, 5) is LOST
    assert placed(masked, 4, 5) == Axis(0)


def test_what_nothing_was_seen_to_make_is_lost_if_it_has_a_history() -> None:
    following = Following(BATCH)
    weight = nn.Parameter(torch.ones(2))
    assert following.of(weight) is FREE
    assert following.of(weight * 2) is LOST


def test_marks_of_an_earlier_pass_say_nothing() -> None:
    first = Following(BATCH)
    batch = first.begin(torch.rand(BATCH, 2))
    assert first.of(batch) == Axis(0)
    assert Following(BATCH).of(batch) is FREE


def test_recurrent_layers_have_their_states_in_the_second_dimension() -> None:
    following = Following(BATCH)
    layers = nn.LSTM(5, 2, num_layers=2), nn.GRU(5, 2, batch_first=True, bidirectional=True)
    batch = following.begin(torch.rand(BATCH, 4, 5))
    with torch.no_grad(), Watched(following):
        out, (hidden, cell) = layers[0](batch.transpose(0, 1))
        other, state = layers[1](batch)
    assert [following.of(one) for one in (out, hidden, cell)] == [Axis(1)] * 3
    assert [following.of(one) for one in (other, state)] == [Axis(0), Axis(1)]


def test_reshapes_keep_the_order_of_elements() -> None:
    """For any shapes: entries of sample i are where the axis says."""
    choose = random.Random(0)
    for _ in range(300):
        sizes = [choose.choice([1, 2, 3, 4]) for _ in range(3)]
        dim = choose.randrange(4)
        old = [*sizes[:dim], BATCH, *sizes[dim:]]
        labels = torch.arange(BATCH).view(*[1] * dim, BATCH, *[1] * (3 - dim)).expand(old)
        total = labels.numel()
        first = choose.choice([n for n in range(1, total + 1) if total % n == 0])
        rest = total // first
        second = choose.choice([n for n in range(1, rest + 1) if rest % n == 0])
        new = (first, second, rest // second)
        axis = reshaped(Axis(dim), tuple(old), new, BATCH)
        if isinstance(axis, Axis):
            front = axis.front(labels.reshape(new), BATCH)
            assert front is not None
            expected = torch.arange(BATCH).view(-1, *[1] * (front.ndim - 1)).expand(front.shape)
            assert torch.equal(front, expected), (old, new, axis)


def tensors_of(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from tensors_of(one)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(
    importlib.util.find_spec("expecttest") is None, reason="torch's samples need expecttest"
)
def test_torchs_own_samples_of_every_function() -> None:
    """Some tensors are given samples somewhere; another sample changes nothing where one is."""
    from torch.testing._internal.common_methods_invocations import op_db

    choose, proved = random.Random(0), set()
    torch.manual_seed(0)
    for op in op_db:
        try:
            samples = list(op.sample_inputs("cpu", torch.float32, requires_grad=False))[:12]
        except Exception:  # noqa: BLE001  (some functions are not in this build)
            continue
        calls = [op.op, *(one for one in (op.method_variant, op.inplace_variant) if one)]
        for sample in samples:
            given = (sample.input, sample.args, sample.kwargs)
            for _ in range(3):
                if _holds(choose.choice(calls), given, choose):
                    proved.add(op.name)
    assert len(proved) > 200, sorted(proved)


def _holds(call: Any, given: tuple[Any, tuple[Any, ...], dict[str, Any]], choose: Any) -> bool:
    """True where a result was placed, and the claim is true; false where nothing was claimed."""
    value, args, kwargs = given
    tensors = list(tensors_of([value, *args, *kwargs.values()]))
    batch, axes = _drawn(tensors, choose)
    if batch is None or getattr(call, "__module__", "") == "torch.masked._ops":
        return False
    following, changed = Following(batch), choose.randrange(batch)
    copies = {id(t): t.clone() for t in tensors}
    for tensor, axis in zip(tensors, axes, strict=True):
        if axis:
            following._mark(copies[id(tensor)], axis, frozenset())
    try:
        with Watched(following):
            results = list(tensors_of(_called(call, given, copies)))
    except Exception:  # noqa: BLE001  (shapes that were drawn need not fit)
        return False
    marks = [following.of(result) for result in results]
    others = [i for i in range(batch) if i != changed]
    altered = {
        id(t): _changed(t, axis, batch, changed) if axis else t.clone()
        for t, axis in zip(tensors, axes, strict=True)
    }
    other = Following(batch)
    for tensor, axis in zip(tensors, axes, strict=True):
        if axis:
            other._mark(altered[id(tensor)], axis, frozenset())
    try:
        with Watched(other):
            again = list(tensors_of(_called(call, given, altered)))
    except Exception:  # noqa: BLE001  (values that were drawn need not fit)
        return False
    for mark, first, second in zip(marks, results, again, strict=True):
        if isinstance(mark, Routed) and not following.mixed:
            _same_rows(mark, first, other.of(second), second, others)
        if not isinstance(mark, Axis):
            continue
        one, two = mark.front(first, batch), mark.front(second, batch)
        assert one is not None and two is not None and one.shape == two.shape, (call, axes, mark)
        same = torch.isclose(one[others], two[others], rtol=1e-4, atol=1e-5, equal_nan=True)
        assert same.all(), (call, [t.shape for t in tensors], axes, args, kwargs, mark)
    return any(isinstance(mark, Axis) for mark in marks)


def _same_rows(
    mark: Routed, first: Tensor, of_second: Mark, second: Tensor, others: list[int]
) -> None:
    """Each sample but the one that was changed has the rows that it had, in their order."""
    assert isinstance(of_second, Routed) and of_second.dim == mark.dim
    for i in others:
        one = first.movedim(mark.dim, 0)[mark.rows.samples == i]
        two = second.movedim(mark.dim, 0)[of_second.rows.samples == i]
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-5, equal_nan=True), (mark, i)


def _drawn(tensors: list[Tensor], choose: Any) -> tuple[int | None, list[Axis | None]]:
    batch: int | None = None
    axes: list[Axis | None] = []
    if any(tensor.is_floating_point() and tensor.itemsize == 1 for tensor in tensors):
        return None, []  # eight bits have no random numbers
    for tensor in tensors:
        dims = [d for d, n in enumerate(tensor.shape) if n > 1 and n % (batch or n) == 0]
        if (
            tensor.layout is not torch.strided
            or not dims
            or (batch is not None and choose.random() < 0.5)
        ):
            axes.append(None)
            continue
        dim = choose.choice(dims)
        batch = batch or tensor.shape[dim]
        times = tensor.shape[dim] // batch
        axes.append(Axis(dim, 1, times) if choose.random() < 0.5 else Axis(dim, times, 1))
    return batch, axes


def _changed(tensor: Tensor, axis: Axis, batch: int, sample: int) -> Tensor:
    entries = torch.arange(tensor.shape[axis.dim])
    own = entries[entries // axis.after % batch == sample]
    part = tensor.index_select(axis.dim, own)
    other = part + torch.rand_like(part) if part.is_floating_point() else part.flip(0)
    return tensor.index_copy(axis.dim, own, ~part if part.dtype == torch.bool else other)


def _called(call: Any, given: tuple[Any, tuple[Any, ...], dict[str, Any]], copies: Any) -> Any:
    def replaced(value: Any) -> Any:
        if isinstance(value, Tensor):
            return copies[id(value)]
        if type(value) in (tuple, list):
            return type(value)(replaced(one) for one in value)
        return value

    value, args, kwargs = given
    named = {name: replaced(one) for name, one in kwargs.items()}
    return call(replaced(value), *replaced(args), **named)


def test_operators_of_others_mean_what_they_like_by_a_known_name() -> None:
    @torch.library.custom_op("trakstore_tests::relu", mutates_args=())
    def sorted_relu(x: Tensor) -> Tensor:
        return x[x[:, 0].argsort()].relu()

    batch = torch.randn(3, 2)
    for operator in (torch.ops.trakstore_tests.relu, torch.ops.trakstore_tests.relu.default):
        following = Following(3)
        x = following.begin(batch)
        out = following.passed(operator, (x,), {}, sorted_relu(batch))
        assert following.of(out) is Unplaced.LOST


def test_a_constant_may_hold_what_python_read_but_a_models_weight_does_not() -> None:
    weight = torch.ones(4)
    following = Following(BATCH, frozenset([id(weight)]))
    batch = following.begin(torch.ones(BATCH, 4))
    following.passed(Tensor.__bool__, (batch,), {}, True)
    assert following.of(weight) is FREE and following.of(torch.ones(4)) is not FREE


def followed(call: Callable[[Tensor], Any], batch: Tensor) -> Following:
    """Follow a function of a batch whose samples are first."""
    following = Following(len(batch))
    with Watched(following):
        call(following.begin(batch))
    return following


FLAGS = torch.tensor([[1, 1], [1, 0], [0, 0]])
ASKED: list[tuple[str, Callable[[Tensor], Any], list[int]]] = [
    ("all", lambda x: bool(x.all()), [0]),
    ("any", lambda x: bool(x.any()), [2]),
    ("any of a part", lambda x: bool((x[:, 1:] > 0).any()), [1, 2]),
    ("none", lambda x: not (x > 5).any(), []),
    ("count of all", lambda x: bool(x.sum() == x.numel()), [0]),
    ("sum", lambda x: bool(x.sum() >= 2), [1, 2]),
    ("largest", lambda x: bool(x.max() < 1), [2]),
    ("a number", lambda x: x.max().item(), [2]),
    ("two answers", lambda x: bool(x.all() | (x.sum() > 1)), [1, 2]),
]


@pytest.mark.parametrize(("call", "others"), [a[1:] for a in ASKED], ids=[a[0] for a in ASKED])
def test_samples_that_alone_would_answer_otherwise(
    call: Callable[[Tensor], Any], others: list[int]
) -> None:
    following = followed(call, FLAGS)
    (decided,) = following.decided
    assert decided.nonzero().flatten().tolist() == others
    # The answers are those of the function itself, of each sample alone.
    assert [i for i in range(BATCH) if call(FLAGS[i : i + 1]) != call(FLAGS)] == others
    assert not following.mixed


TOLD: dict[str, Callable[[Tensor], Any]] = {
    "numbers": lambda x: x.sum(1).tolist(),
    "a question of a mean": lambda x: bool(x.float().mean(0).sum() > 1),
    "a comparison with as many as there are": lambda x: bool(x.sum() >= x.numel()),
    "equality": lambda x: torch.equal(x, x),
    "text": str,
    "rows that were found": lambda x: list(x.nonzero()),
}


@pytest.mark.parametrize("name", TOLD)
def test_what_tells_python_of_several_samples_mixes_them(name: str) -> None:
    assert followed(TOLD[name], FLAGS).mixed


def test_what_tells_of_no_sample_mixes_none() -> None:
    quiet: list[Callable[[Tensor], Any]] = [
        lambda x: (x.is_pinned(), x.is_nonzero, x._version, torch.is_same_size(x, x)),
        lambda _: bool(torch.ones(2).all()) and torch.equal(torch.ones(2), torch.ones(2)),
    ]
    assert not any(followed(call, FLAGS).mixed for call in quiet)
