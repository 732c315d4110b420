"""Scores in memory, without projection, of one checkpoint of a language model: what a store can reach.

All are made of dense gradients of each document, of the train and target documents' own tokens and of
the train documents with tokens that are sampled from the model. Kernels need only the products of
these rows (their gram), so that no matrix of parameters times parameters is formed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from language import LanguageModel
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

F64 = NDArray[np.float64]
DAMPING = (0.01, 0.03, 0.1, 0.3, 1.0)
EKFAC_DAMPING = (0.0001, 0.001, 0.01, 0.1, 1.0)


@dataclass(frozen=True)
class Rows:
    """Gradients of documents' mean losses (documents, parameters): target, train, then each draw's."""

    model: LanguageModel
    train: Tensor
    draws: list[Tensor]
    gradients: Tensor
    targets: int

    @classmethod
    def compute(
        cls, model: LanguageModel, train: Tensor, target: Tensor, draws: int, seed: int = 0
    ) -> Rows:
        generator = torch.Generator().manual_seed(seed)
        sampled = [sample_next(model, train, generator) for _ in range(draws)]
        asked = [(target, target[:, 1:]), (train, train[:, 1:]), *((train, one) for one in sampled)]
        count = sum(len(ids) for ids, _ in asked)
        # One table is filled in place: a copy of it would be gigabytes more.
        rows, at = torch.empty(count, sum(p.numel() for p in model.parameters())), 0
        for ids, labels in asked:
            for part in gradients(model, ids, labels):
                rows[at : at + len(part)] = part
                at += len(part)
        return cls(model, train, sampled, rows, len(target))

    @property
    def sampled(self) -> Tensor:
        return self.gradients[self.targets + len(self.train) :]

    def scale(self) -> None:
        """Divide gradients, in place, by the fourth root of sampled gradients' factored moments."""
        moments = factored(
            self.model, torch.stack([x.square().mean(0) for x in self.sampled.split(64)]).mean(0)
        )
        # Tokens that occur nowhere have no gradient, which a root of 0 must not make NaN.
        self.gradients.mul_(torch.where(moments > 0, moments, torch.inf).pow(-0.25))


def gradients(model: LanguageModel, ids: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """Yield gradients (documents, parameters) of documents' mean losses with given next tokens."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], ids: Tensor, labels: Tensor) -> Tensor:
        logits = functional_call(model, parameters, (ids[None],))[0, :-1]
        return F.cross_entropy(logits, labels)

    for one, wanted in zip(ids.split(64), labels.split(64), strict=True):
        with sdpa_kernel(SDPBackend.MATH):  # the others have no rule of vmap
            parts = vmap(grad(loss), (None, 0, 0))(parameters, one, wanted)
        yield torch.cat([part.flatten(1) for part in parts.values()], 1)


def sample_next(model: LanguageModel, ids: Tensor, generator: torch.Generator) -> Tensor:
    """Draw each next token (documents, length - 1) from the model's own prediction."""
    with torch.no_grad():
        chances = torch.softmax(model(ids)[:, :-1], -1)
    return torch.multinomial(chances.flatten(0, 1), 1, generator=generator).view(len(ids), -1)


def pieces(model: LanguageModel, rows: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Views of rows (..., parameters), parameter by parameter, in its own shape."""
    begin = 0
    for name, p in model.named_parameters():
        yield name, rows[..., begin : begin + p.numel()].unflatten(-1, p.shape)
        begin += p.numel()


def factored(model: LanguageModel, moments: Tensor) -> Tensor:
    """Replace each matrix of moments by the product of its rows' and columns' means over its mean."""
    made = []
    for _, one in pieces(model, moments):
        if one.ndim == 2:
            mean = one.mean().clamp(min=torch.finfo(one.dtype).tiny)
            one = one.mean(1, keepdim=True) * one.mean(0, keepdim=True) / mean
        made.append(one.flatten())
    return torch.cat(made)


def gram(rows: Tensor) -> F64:
    """Compute the products of rows (rows, rows)."""
    x = rows.numpy()
    found: F64 = (x @ x.T).astype(np.float64)
    return found


def kernel_scores(products: F64, targets: int, train: int, draws: int, c: float) -> F64:
    """Compute T (K + λI)⁻¹ Φᵀ (target, train) from the products of all rows, λ = c·tr(K)/n.

    K is the sum of sampled rows over the number of draws, or of the train rows' own for no draw. By
    the matrix inversion lemma only the kernel rows' products with each other are inverted.
    """
    t, f = slice(targets), slice(targets, targets + train)
    k = slice(f.stop, f.stop + draws * train) if draws else f
    of_kernel = products[k, k] / max(draws, 1)
    damping = c * np.trace(of_kernel) / train
    # The products of kernel rows are scaled by the root of the draws on each side they appear on.
    left, right = products[t, k] / max(draws, 1), products[k, f]
    inner = of_kernel + damping * np.eye(len(of_kernel))
    found: F64 = (products[t, f] - left @ np.linalg.solve(inner, right)) / damping
    return found


def ekfac_scores(rows: Rows) -> dict[float, F64]:
    """Scores of EK-FAC of all linear layers by damping, a multiple of each layer's mean eigenvalue."""
    modules = {n: m for n, m in rows.model.named_modules() if isinstance(m, nn.Linear)}
    bases = eigenvectors(rows, modules)
    parts = dict(pieces(rows.model, rows.gradients))
    stop = rows.targets + len(rows.train)
    scores = {c: np.zeros((rows.targets, len(rows.train))) for c in EKFAC_DAMPING}
    for name, module in modules.items():
        g = parts[f"{name}.weight"]
        if module.bias is not None:
            g = torch.cat([g, parts[f"{name}.bias"][..., None]], -1)
        outputs, inputs = bases[name]
        turned = torch.einsum("roi,op,iq->rpq", g, outputs, inputs).flatten(1)
        values = (turned[stop:] ** 2).mean(0)
        for c, sums in scores.items():
            divided = turned[: rows.targets] / (values + c * values.mean())
            sums += (divided @ turned[rows.targets : stop].T).numpy()
    return scores


def eigenvectors(rows: Rows, modules: dict[str, nn.Module]) -> dict[str, tuple[Tensor, Tensor]]:
    """Eigenvectors of each layer's factors: of its output gradients, and of its inputs (with a 1)."""
    factors: dict[str, list[Tensor]] = {name: [torch.tensor(0.0)] * 2 for name in modules}

    def watch(name: str, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        a = inputs[0].detach().flatten(0, -2)
        if module.bias is not None:
            a = torch.cat([a, torch.ones(len(a), 1)], 1)
        factors[name][1] = factors[name][1] + a.T @ a

        def back(gradient: Tensor) -> None:
            d = gradient.flatten(0, -2)
            factors[name][0] = factors[name][0] + d.T @ d

        output.register_hook(back)

    hooks = [module.register_forward_hook(lambda m, i, o, name=name: watch(name, m, i, o))
             for name, module in modules.items()]  # fmt: skip
    for labels in rows.draws:
        for ids, wanted in zip(rows.train.split(64), labels.split(64), strict=True):
            logits = rows.model(ids)[:, :-1].flatten(0, 1)
            F.cross_entropy(logits, wanted.flatten(), reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    return {name: (torch.linalg.eigh(s).eigenvectors, torch.linalg.eigh(a).eigenvectors)
            for name, (s, a) in factors.items()}  # fmt: skip


def references(rows: Rows) -> dict[str, F64]:
    """Scores (target, train) of one checkpoint by name; rows are scaled at the end."""
    m, n = rows.targets, len(rows.train)
    plain = gram(rows.gradients[: m + n])
    lengths = np.sqrt(np.diag(plain))
    found = {"cosine": plain[:m, m:] / np.outer(lengths[:m], lengths[m:])}
    found |= {f"EK-FAC, damping {c}": one for c, one in ekfac_scores(rows).items()}
    rows.scale()
    scaled = gram(rows.gradients)
    for scale, products in (("", plain), ("scaled, ", scaled)):
        found[f"{scale}dot product"] = products[:m, m : m + n]
        for used in sorted({0, 1, len(rows.draws)}) if scale else (0,):
            kind = f"{used} draw{'s' * (used > 1)}" if used else "empirical"
            for c in DAMPING:
                one = kernel_scores(products, m, n, used, c)
                found[f"{scale}kernel, {kind}, c = {c}"] = one
    return found
