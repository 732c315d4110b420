"""Log-odds from logits, against the same mathematics in float64, from losses of 1e-36 to 300."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from trakstore.features import CausalLM, Contrastive, CrossEntropy, Margin, MaskedLM, RowOutputs
from trakstore.features.outputs import ModelOutput
from trakstore.features.outputs.odds import log_odds

GAPS = [-300.0, -20.0, 0.0, 8.0, 15.0, 30.0, 37.0, 69.0, 80.0]  # nats by which the right one leads
SAMPLES, LENGTH, WORDS = 3, 5, 40


def exact_losses(logits: Tensor, label: Tensor) -> Tensor:
    """softplus of the others' log-sum-exp minus the own logit, each sum begun with its largest term."""
    at = label.clamp(min=0)[..., None]
    own = logits.gather(-1, at)
    x = (logits - own).scatter(-1, at, -torch.inf).logsumexp(-1)
    return torch.where(x > 30, x, torch.log1p(x.clamp(max=30).exp()))


def exact_odds(loss: Tensor) -> Tensor:
    return torch.where(loss > 30, -loss, -torch.log(torch.expm1(loss.clamp(max=30))))


def peaked(gap: float, *shape: int, offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Float32 logits of which the label's leads the others by about ``gap``, and labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, WORDS, shape, generator=generator)
    logits = torch.randn(*shape, WORDS, generator=generator)
    leads = torch.full((*shape, 1), gap) + torch.randn(*shape, 1, generator=generator)
    return logits.scatter_add(-1, labels[..., None], leads) + offset, labels


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest error of a row, relative to the row."""
    found, wanted = (one.detach().double().reshape(len(one), -1) for one in (found, wanted))
    return float(((found - wanted).norm(dim=1) / wanted.norm(dim=1)).max())


def assert_exact(
    output: ModelOutput,
    inputs: Tensor,
    rows: Callable[[Tensor], Any],
    loss_of: Callable[[Tensor], Tensor],
) -> None:
    """Output, loss, out_to_loss and the output's gradient to 1e-5 of those of float64.

    Parameters
    ----------
    output : ModelOutput
    inputs : Tensor
        What the model gives for each sample, float32.
    rows : callable
        A batch of samples whose inputs are given.
    loss_of : callable
        The loss of each sample.
    """
    leaf = inputs.clone().requires_grad_()
    found = output(lambda given, *_: given, rows(leaf))
    gradient = torch.autograd.grad(found.output.sum(), leaf)[0]
    exact = inputs.double().requires_grad_()
    loss = loss_of(exact)
    odds = exact_odds(loss)
    wanted = torch.autograd.grad(odds.sum(), exact)[0]
    assert {one.dtype for one in found} == {torch.float32}
    assert relative(gradient, wanted) < 1e-5
    for got, right in zip(found, (odds, loss, -torch.expm1(-loss)), strict=True):
        assert relative(got, right) < 1e-5


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_margin_at_any_loss(gap: float, offset: float) -> None:
    logits, labels = peaked(gap, SAMPLES, offset=offset)
    assert_exact(Margin(), logits, lambda z: (z, labels), lambda z: exact_losses(z, labels))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("kind", [CausalLM, MaskedLM])
def test_sequences_at_any_loss(kind: Any, gap: float, reduction: Any) -> None:
    """With tokens that do not count, of which nothing shows."""
    logits, labels = peaked(gap, SAMPLES, LENGTH)
    labels[0, 1] = labels[2, 3:] = -100
    logits[0, 1] = 1e4 * torch.randn(WORDS, generator=torch.Generator().manual_seed(1))
    counted = labels != -100
    n = counted.sum(1) if reduction == "mean" else torch.ones(SAMPLES)
    after = kind is CausalLM  # a token's logits stand one before it
    aligned = torch.cat([torch.full((SAMPLES, 1), -100), labels], 1) if after else labels
    assert_exact(
        kind(reduction=reduction),
        logits,
        lambda z: {
            "given": F.pad(z, (0, 0, 0, 1)) if after else z,
            "labels": aligned,
        },
        lambda z: torch.where(counted, exact_losses(z, labels), 0).sum(1) / n,
    )


@pytest.mark.parametrize("gap", [0.05, 0.3, 0.8])
def test_pairs_at_any_loss(gap: float) -> None:
    """A bank of others at a cosine that is lower by ``gap``, times 100."""
    generator = torch.Generator().manual_seed(0)
    width, bank = 64, 30
    near = F.pad(torch.ones(1), (0, width - 1))
    pairs = near + 0.02 * torch.randn(SAMPLES, 2, width, generator=generator)
    banks = (1 - gap) * near + torch.randn(2, bank, width, generator=generator) * 0.02
    banks[..., 1] += (1 - (1 - gap) ** 2) ** 0.5
    images, texts = banks

    def loss_of(both: Tensor) -> Tensor:
        image, text = F.normalize(both, dim=-1).unbind(1)
        sides = []
        for one, others in ((image, texts), (text, images)):
            cosines = one @ F.normalize(others.double(), dim=1).T
            x = (100 * (cosines - (image * text).sum(1, keepdim=True))).logsumexp(1)
            sides.append(torch.log1p(x.exp()))
        return (sides[0] + sides[1]) / 2

    class Both(Contrastive):
        def __call__(self, _: Any, batch: Any) -> RowOutputs:
            return super().__call__(lambda both: both.unbind(1), batch)

    assert_exact(Both(images, texts), pairs, lambda both: (both,), loss_of)


@pytest.mark.parametrize("output", [CrossEntropy(), CausalLM(over="loss")])
def test_a_small_loss_has_a_gradient_of_its_size(output: ModelOutput) -> None:
    logits, labels = peaked(40.0, SAMPLES, 1)
    leaf, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    if isinstance(output, CausalLM):
        batch: Any = {"x": leaf, "labels": torch.cat([labels, labels], 1)}
        found = output(lambda x: x.expand(-1, 2, -1), batch)
    else:
        found = output(lambda x: x[:, 0], (leaf, labels[:, 0]))
    gradient = torch.autograd.grad(found.output.sum(), leaf)[0]
    loss = exact_losses(exact, labels)
    assert relative(found.loss, loss[:, 0]) < 1e-5
    assert relative(gradient, torch.autograd.grad(loss.sum(), exact)[0]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("output", [Margin(), CausalLM(), CrossEntropy()])
def test_half_logits_are_widened_and_float64_stays(dtype: torch.dtype, output: ModelOutput) -> None:
    logits, labels = peaked(12.0, SAMPLES, *([] if not isinstance(output, CausalLM) else [LENGTH]))
    logits = logits.to(dtype)
    found = output(lambda z: z, (logits, labels))
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    wanted = output(lambda z: z.to(kept), (logits, labels))
    for got, right in zip(found, wanted, strict=True):
        assert got.dtype == kept
        torch.testing.assert_close(got, right, rtol=0, atol=0)


def test_log_odds_are_those_of_the_probability() -> None:
    p = torch.tensor([1e-6, 0.1, 0.5, 0.999], dtype=torch.float64)
    found = log_odds((-p.log()).log())
    torch.testing.assert_close(found.output, torch.log(p / (1 - p)))
    torch.testing.assert_close(found.out_to_loss, 1 - p)
    log_loss = (-p.log()).log().requires_grad_()
    slope = torch.autograd.grad(log_odds(log_loss).output.sum(), log_loss)[0]
    torch.testing.assert_close(p.log() / slope, 1 - p)  # −dl/d(output)


@pytest.mark.parametrize("over", ["sequence", "tokens", "loss"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_sequence_without_tokens_is_nan_and_leaves_the_others_alone(
    over: Any, reduction: Any
) -> None:
    """Nor has it a gradient, alone under vmap and in a batch; so for a label that is no token."""
    logits, labels = peaked(3.0, 4, LENGTH)
    labels[1] = -100
    labels[2, 3] = WORDS
    output = CausalLM(over, reduction)
    leaf = logits.clone().requires_grad_()
    found = output(lambda z: z, (leaf, labels))
    for column in found:
        assert column.isnan().tolist() == [False, True, True, False]
    together = torch.autograd.grad(found.output.sum(), leaf)[0]

    def scalar(one: Tensor, label: Tensor) -> Tensor:
        return output(lambda z: z, (one[None], label[None])).output[0]

    alone = vmap(grad(scalar))(logits, labels)
    torch.testing.assert_close(alone, together)
    assert not together[1:3].any() and together[[0, 3]].flatten(1).any(1).all()
    assert output(lambda z: z, (logits[:, :1], labels[:, :1])).output.isnan().all()


def test_a_label_that_is_no_class_is_nan() -> None:
    logits, labels = peaked(3.0, 3)
    labels[0], labels[1] = -1, WORDS
    leaf = logits.clone().requires_grad_()
    found = Margin()(lambda z: z, (leaf, labels))
    assert found.output.isnan().tolist() == [True, True, False]
    gradient = torch.autograd.grad(found.output.sum(), leaf)[0]
    assert gradient.flatten(1).any(1).tolist() == [False, False, True]
