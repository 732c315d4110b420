"""Models put together of parts, of which many do with their rows what the data say."""

# ruff: noqa: ARG002  (every part is given the data, whether it asks them or not)

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

WIDTH, TOKENS, LENGTH = 4, 12, 6


class Part(nn.Module):
    """A step from ``(batch, time, width)`` to the same; ``ids`` and ``lengths`` are the data."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def act(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x))

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        return self.act(h)


class Normed(Part):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        return h + self.act(self.norm(h))


class Attention(Part):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        return h + self.attention(h, h, h, need_weights=False)[0]


class Positions(Part):
    """Positions without samples, and types that are zeros for each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.position, self.kind = nn.Embedding(LENGTH, WIDTH), nn.Embedding(2, WIDTH)
        self.shift = nn.Parameter(torch.randn(LENGTH, WIDTH))

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        types = torch.zeros(ids.shape, dtype=torch.long)
        h = h + self.position(torch.arange(ids.shape[1])) * 2
        return self.act(h + self.kind(types) + self.shift)


class TimeFirst(Part):
    """Samples in the second dimension, and merged with time."""

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        turned = h.transpose(0, 1)
        out = self.act(turned.reshape(-1, WIDTH)).view(turned.shape)
        return out.transpose(0, 1)


class Convolved(Part):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        return torch.tanh(self.convolution(h.transpose(1, 2))).transpose(1, 2)


class Sorted(Part):
    """The batch sorted by length, and put back."""

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        order = lengths.argsort(descending=True)
        return self.act(h[order])[order.argsort()]


class Flipped(Part):
    """The batch turned round, and back."""

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        return self.act(h.flip(0)).flip(0)


class SortedTypes(Part):
    """A layer of constants, whose rows are added where samples are in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.kind = nn.Embedding(2, WIDTH)

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        order = lengths.argsort()
        mixed = h[order] * self.kind(torch.zeros(ids.shape, dtype=torch.long))
        return self.act(mixed[order.argsort()])


class Picked(Part):
    """Some tokens, picked in one of many ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        flat, wanted = h.reshape(-1, WIDTH), ids.reshape(-1) >= TOKENS // 2
        return flat.index_add(0, *self._added(flat, self._index(wanted))).view(h.shape)

    def _added(self, flat: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        return index, self.act(flat[index])

    def _index(self, wanted: Tensor) -> Tensor:
        if self.how == "where":
            return torch.where(wanted)[0]
        if self.how == "argwhere":
            return torch.argwhere(wanted)[:, 0]
        if self.how == "nonzero":
            return wanted.nonzero().squeeze(1)
        if self.how == "list":
            return torch.tensor(
                [i for i, one in enumerate(wanted.tolist()) if one], dtype=torch.long
            )
        if self.how == "argsort":
            return torch.argsort((~wanted).int(), stable=True)[: int(wanted.sum())]
        return torch.arange(len(wanted))[wanted]


class Masked(Part):
    """Tokens written where a mask says."""

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        mask, out = ids >= TOKENS // 2, h.clone()
        out[mask] = self.act(h[mask])
        return out


class Experts(Part):
    """Tokens sorted by expert, of which each gets a slice of a size that the data decide."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        flat = h.reshape(-1, WIDTH)
        weights, which = self.gate(flat).softmax(-1).max(-1)
        order = which.argsort(stable=True)
        counts = torch.bincount(which, minlength=3).tolist()
        parts = flat[order].split(counts)
        done = [torch.tanh(expert(part)) for expert, part in zip(self.experts, parts, strict=True)]
        out = torch.empty_like(flat)
        out[order] = torch.cat(done)
        return (flat + out * weights[:, None]).view(h.shape)


class SecondUse(Part):
    """A weight that another function uses too, for some samples alone."""

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        flag = (lengths > 4).float()[:, None, None]
        return self.act(h) + flag * torch.einsum("bti,oi->bto", h, self.layer.weight)


class Packed(Part):
    """A recurrent layer over sequences of several lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.act(h), lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=h.shape[1])
        return h + out


class OnPacked(Part):
    """A layer on the data of a packed sequence, whose rows are of one time after the other."""

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(h, lengths, batch_first=True, enforce_sorted=False)
        packed = packed._replace(data=self.act(packed.data))
        return h + pad_packed_sequence(packed, batch_first=True, total_length=h.shape[1])[0]


class Looped(Part):
    """One sample after the other, in Python."""

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        pairs = zip(h, lengths.tolist(), strict=True)
        rows = [torch.cat([self.act(row[:count]), row[count:]]) for row, count in pairs]
        return torch.stack(rows)


class Branched(Part):
    """A layer that is used if the data say so."""

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        every = (lengths > 3)[:, None, None]
        return torch.where(every, self.act(h), h) if bool(every.any()) else h


class Told(Part):
    """Positions that Python made of the data, for as many tokens as are not the first."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Embedding(LENGTH, WIDTH)

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        flat = h.reshape(-1, WIDTH)
        chosen = [i for i, one in enumerate(ids.reshape(-1).tolist()) if one % 3 == 1]
        if not chosen:
            return self.act(h)
        index = torch.tensor(chosen)
        places = self.place(torch.tensor([i % LENGTH for i in chosen]))
        return self.act(flat.index_add(0, index, places).view(h.shape))


class LastToken(Part):
    """The last token of each sample, by its own number and length."""

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        last = h[torch.arange(len(h)), lengths - 1]
        return h + self.act(last)[:, None]


class Repeated(Part):
    """Each sample twice beside itself, and the two added."""

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        twice = self.act(h.repeat_interleave(2, 0))
        return twice.view(len(h), 2, *h.shape[1:]).sum(1)


class Unrolled(Part):
    """Whole batches laid one after another along time, and cut by sizes that the data decide."""

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        rows = torch.cat([row[:n] for row, n in zip(h, lengths.tolist(), strict=True)])
        parts = self.act(rows).split(lengths.tolist())
        filled = [F.pad(part, (0, 0, 0, h.shape[1] - len(part))) for part in parts]
        return h + torch.stack(filled)


class Hidden(torch.autograd.Function):
    """A product whose backward pass is its own."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        ctx.save_for_backward(x, weight)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def, override]
        x, weight = ctx.saved_tensors
        return gradient @ weight, torch.einsum("bto,bti->oi", gradient, x)


class OwnFunction(Part):
    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        own: Tensor = Hidden.apply(h, self.layer.weight)  # type: ignore[no-untyped-call]
        return torch.tanh(own)


class Checkpointed(Part):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.act, h, use_reentrant=self.reentrant)
        return out


class Slope(Part):
    """A gradient taken on the way, as force models do."""

    def forward(self, h: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        with torch.enable_grad():
            x = h if h.requires_grad else h.requires_grad_()
            (slope,) = torch.autograd.grad(self.act(x).square().sum(), x, create_graph=True)
        return h + slope


STATIC: dict[str, Callable[[], nn.Module]] = {
    one.__name__: one
    for one in (Part, Normed, Attention, Positions, TimeFirst, Convolved, Repeated)
}
BY_DATA: dict[str, Callable[[], nn.Module]] = {
    one.__name__: one
    for one in (
        *(Sorted, Flipped, SortedTypes, Masked, Experts, SecondUse, Packed, OnPacked, Looped),
        *(Branched, Told, LastToken, Unrolled, OwnFunction, Slope),
    )
}
BY_DATA |= {
    f"Picked {how}": lambda how=how: Picked(how)  # type: ignore[misc]
    for how in ("where", "argwhere", "nonzero", "list", "argsort", "mask")
}
BY_DATA |= {
    f"Checkpointed {kind}": lambda kind=kind: Checkpointed(kind)  # type: ignore[misc]
    for kind in (True, False)
}


class Drawn(nn.Module):
    """Parts one after another, between an embedding and a head."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        every = STATIC | BY_DATA
        self.embedding = nn.Embedding(TOKENS, WIDTH)
        self.parts = nn.ModuleList(every[name]() for name in names)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        h = self.embedding(ids)
        for part in self.parts:
            h = part(h, ids, lengths)
        out: Tensor = self.head(h.mean(1))
        return out
