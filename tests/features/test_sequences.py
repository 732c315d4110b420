"""Encoder-decoder models by their own loss, and batches that are taken apart, or refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import trakstore as ts
from trakstore.errors import TrakStoreError
from trakstore.features import CausalLM, Margin, MaskedLM, SquaredError, featurize
from trakstore.features.outputs.sequences import sequences

WORDS, SAMPLES, LENGTH = 29, 5, 7


@cache
def seq2seq(kind: str) -> nn.Module:
    tf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 16}
    small |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": WORDS}
    small |= {"encoder_ffn_dim": 8, "decoder_ffn_dim": 8, "pad_token_id": 1, "eos_token_id": 2}
    small |= {"decoder_start_token_id": 2}
    if kind == "t5":
        config = tf.T5Config(
            vocab_size=WORDS,
            d_model=8,
            d_kv=4,
            d_ff=8,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
        )
        return tf.T5ForConditionalGeneration(config).eval()
    if kind == "bart":
        return tf.BartForConditionalGeneration(tf.BartConfig(**small)).eval()
    if kind == "mbart":
        return tf.MBartForConditionalGeneration(tf.MBartConfig(**small)).eval()
    # moves labels within its forward only
    return tf.M2M100ForConditionalGeneration(tf.M2M100Config(**small)).eval()


class Wrapped(nn.Module):
    """As torch's data parallel wrappers do."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def rows(target: int = LENGTH) -> dict[str, Tensor]:
    """Sources of several lengths, padded at the right to the length of the targets, or not."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, WORDS, (SAMPLES, LENGTH), generator=generator)
    labels = torch.randint(3, WORDS, (SAMPLES, target), generator=generator)
    mask = (torch.arange(LENGTH) < LENGTH - torch.arange(SAMPLES)[:, None]).long()
    labels[2, 4:] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def sample(batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    return {name: tensor[row : row + 1] for name, tensor in batch.items()}


def gradient(scalar: Tensor, model: nn.Module) -> Tensor:
    found = torch.autograd.grad(
        scalar, list(model.parameters()), allow_unused=True, materialize_grads=True
    )
    return torch.cat([one.reshape(-1) for one in found])


@pytest.mark.parametrize("target", [LENGTH, 6])
@pytest.mark.parametrize("output", [CausalLM("loss"), MaskedLM("loss")])
@pytest.mark.parametrize("kind", ["t5", "bart", "mbart", "m2m100"])
def test_labels_alone_are_the_models_own_loss(kind: str, output: Any, target: int) -> None:
    model, batch = seq2seq(kind), rows(target)
    output.check(model, batch)
    own = torch.stack([model(**sample(batch, row)).loss for row in range(SAMPLES)])
    for whole in (model, Wrapped(model)):
        torch.testing.assert_close(output(whole, batch).loss, own)
    found = gradient(output(model, sample(batch, 2)).output.sum(), model)
    torch.testing.assert_close(found, gradient(own[2], model), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["t5", "bart", "mbart", "m2m100"])
def test_the_models_shift_under_vmap(kind: str) -> None:
    class Odds(nn.Module):
        """The output as the answer of a model, whose weights can be other ones."""

        def __init__(self) -> None:
            super().__init__()
            self.model = seq2seq(kind)

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return MaskedLM()(self.model, batch).output

    model, batch = Odds().eval(), rows()
    del batch["attention_mask"]  # whose values transformers looks at
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def scalar(given: dict[str, Tensor], one: dict[str, Tensor]) -> Tensor:
        row = {name: tensor[None] for name, tensor in one.items()}
        return functional_call(model, given, (row,))[0]

    with sdpa_kernel(SDPBackend.MATH):
        found = vmap(grad(scalar), in_dims=(None, 0))(weights, batch)
    for row in range(SAMPLES):
        flat = torch.cat([found[name][row].reshape(-1) for name in weights])
        wanted = gradient(model(sample(batch, row)).sum(), model)
        torch.testing.assert_close(flat, wanted, rtol=1e-4, atol=1e-5)


def test_decoder_inputs_that_are_given_are_used_and_their_mask_counts() -> None:
    model, batch = seq2seq("t5"), rows()
    batch["decoder_input_ids"] = model._shift_right(batch["labels"])
    batch["decoder_attention_mask"] = torch.ones(SAMPLES, LENGTH, dtype=torch.long)
    batch["decoder_attention_mask"][3, 5:] = 0
    batch["labels"][3, 5:] = 4  # not to be predicted
    own = dict(
        batch, labels=batch["labels"].masked_fill(batch["decoder_attention_mask"] == 0, -100)
    )
    wanted = torch.stack([model(**sample(own, row)).loss for row in range(SAMPLES)])
    torch.testing.assert_close(MaskedLM("loss")(model, batch).loss, wanted)
    batch["decoder_attention_mask"] = batch["decoder_attention_mask"][:, :-1]
    with pytest.raises(TrakStoreError, match=r"\(5, 7\), decoder_attention_mask \(5, 6\)"):
        CausalLM().check(model, batch)


def test_a_model_that_holds_an_encoder_decoder_is_asked_as_its_own_forward_says() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = seq2seq("t5")

        def forward(self, ids: Tensor, target: Tensor) -> Tensor:
            return self.module(input_ids=ids, labels=target).logits

    model, batch = Holder(), rows()
    given = {"ids": batch["input_ids"], "target": batch["labels"], "labels": batch["labels"]}
    MaskedLM().check(model, given)
    own = {"input_ids": batch["input_ids"], "labels": batch["labels"]}
    found = MaskedLM("loss")(model, given).loss
    torch.testing.assert_close(found, MaskedLM("loss")(model.module, own).loss)


def test_an_encoder_alone_is_masked_by_its_own_mask() -> None:
    """A T5 that tags tokens says that it is an encoder-decoder, and has no decoder."""
    tf = pytest.importorskip("transformers")
    model = tf.T5ForTokenClassification(seq2seq("t5").config).eval()
    batch = rows()
    found = sequences(model, batch, "masked_lm")
    assert not found.target
    counted = (batch["attention_mask"] == 1) & (batch["labels"] != -100)
    assert ((found.labels != -100) == counted).all()


class Unshifted(nn.Module):
    """An encoder-decoder that wants its decoder's inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"is_encoder_decoder": True})()

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        return F.one_hot(decoder_input_ids, WORDS) + input_ids.sum()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"input_ids": torch.ones(2, 3).long()}, r"needs dicts with 'labels'.*\['input_ids'\]"),
        ((torch.ones(2, 3).long(), torch.ones(2, 3).long()), "needs dicts with 'labels'.*tuple"),
        (rows(), "Unshifted does not make .* give 'decoder_input_ids' too"),
    ],
)
def test_an_encoder_decoder_that_lacks_something(batch: Any, message: str) -> None:
    with pytest.raises(TrakStoreError, match=f"(causal_lm of an encoder-decoder )?.*{message}"):
        CausalLM().check(Unshifted(), batch)


def test_a_model_that_cannot_shift_says_why() -> None:
    tf = pytest.importorskip("transformers")
    config = tf.BartConfig(**{**seq2seq("bart").config.to_dict(), "pad_token_id": None})
    model = tf.BartForConditionalGeneration(config).eval()
    with pytest.raises(TrakStoreError, match=r"'labels' \(.*pad_token_id.*\): set that, or give"):
        MaskedLM().check(model, rows())


class Nano(nn.Module):
    """Gives the logits of the last position alone, unless it is told what is to come."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(WORDS, 4), nn.Linear(4, WORDS)

    def all_logits(self, idx: Tensor) -> Tensor:
        return self.head(self.embed(idx))

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits = self.all_logits(idx)
        if targets is None:
            return logits[:, [-1]], None
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return logits, loss


@pytest.mark.parametrize("labelled", [False, True])
def test_a_forward_that_takes_targets(labelled: bool) -> None:
    torch.manual_seed(0)
    model, ids = Nano(), rows()["input_ids"]
    labels = ids.clone()
    labels[:, :3] = -100
    batch = (ids, labels) if labelled else (ids,)
    CausalLM().check(model, batch)
    each = F.cross_entropy(
        model.all_logits(ids)[:, :-1].transpose(1, 2),
        (labels if labelled else ids)[:, 1:],
        reduction="none",
    )
    wanted = each.sum(1) / (4 if labelled else 6)
    torch.testing.assert_close(CausalLM("loss")(model, batch).loss, wanted)
    named = {"idx": ids, "labels": labels if labelled else ids}
    torch.testing.assert_close(CausalLM("loss")(model, named).loss, wanted)


def test_batches_that_do_not_fit() -> None:
    table, ids = nn.Embedding(WORDS, WORDS), rows()["input_ids"]
    moved = torch.cat([ids[:, 1:], torch.full((SAMPLES, 1), -100)], 1)
    outside = [ids.masked_fill(ids == ids[0, 1], one) for one in (-1, WORDS)]
    cases: list[tuple[Any, str]] = [
        ((ids, moved), "moved by one, and would be moved again"),
        ({"input_ids": ids, "labels": moved}, "moved by one, and would be moved again"),
        ((ids, torch.ones_like(ids), ids), r"\(input_ids,\) or \(input_ids, labels\), got 3"),
        ((ids, ids > 3), "integer labels .* of torch.bool"),
        ((ids, outside[0]), "labels hold -1; tokens are from 0 to 28, and -100"),
        ((ids, outside[1]), "labels hold 29; tokens are from 0 to 28"),
        ({"input_ids": ids, "label": ids}, "rows have 'label': call a sequence's tokens 'labels'"),
    ]
    for batch, message in cases:
        with pytest.raises(TrakStoreError, match=message):
            CausalLM().check(table, batch)
    same = torch.full((2, 5), 3)  # of one token only: moved or not
    CausalLM().check(table, (same, same))


def test_keys_that_the_model_does_not_take() -> None:
    batch = {"x": torch.randn(4, 3), "label": torch.zeros(4).long()}
    for output in (Margin(), SquaredError()):
        with pytest.raises(
            TrakStoreError, match=r"forward takes input, .* have 'x': leave them out"
        ):
            output.check(nn.Linear(3, 2), batch)
    with pytest.raises(TrakStoreError, match="have 'attention_mask'"):
        CausalLM().check(nn.Embedding(WORDS, WORDS), {**rows(), "input": rows()["input_ids"]})


@pytest.mark.parametrize("key", ["label", "labels"])
def test_a_number_may_be_called_label(key: str) -> None:
    class Named(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    model, x, y = Named(3, 1), torch.randn(4, 3), torch.randn(4)
    found = SquaredError()(model, {"x": x, key: y})
    torch.testing.assert_close(found.loss, (model(x)[:, 0] - y) ** 2 / 2)


def llama() -> Any:
    tf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    return tf.LlamaForCausalLM(
        tf.LlamaConfig(**small, num_attention_heads=2, vocab_size=WORDS, pad_token_id=0)
    ).eval()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_no_loss(side: str) -> None:
    model, ids = llama(), rows()["input_ids"]
    sizes = [7, 5, 4, 6, 2]
    alone = torch.stack(
        [model(ids[i : i + 1, :n], labels=ids[i : i + 1, :n]).loss for i, n in enumerate(sizes)]
    )
    place = torch.arange(LENGTH)
    mask = torch.stack(
        [place < n if side == "right" else place >= LENGTH - n for n in sizes]
    ).long()
    padded = torch.zeros_like(ids)
    for i, n in enumerate(sizes):
        padded[i, mask[i] == 1] = ids[i, :n]
    batch = {"input_ids": padded, "attention_mask": mask}
    batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    torch.testing.assert_close(CausalLM("loss")(model, batch).loss, alone, rtol=1e-5, atol=1e-6)


def packs() -> tuple[dict[str, Tensor], list[tuple[int, ...]]]:
    """Rows of 9 tokens, of documents one after the other; one document is a single token."""
    sizes = [(4, 3, 2), (9,), (2, 1, 6)]
    ids = torch.randint(3, WORDS, (3, 9), generator=torch.Generator().manual_seed(2))
    places = [torch.cat([torch.arange(n) for n in each]) for each in sizes]
    return {"input_ids": ids, "position_ids": torch.stack(places)}, sizes


def test_documents_of_a_pack_see_and_predict_only_their_own_tokens(tmp_path: Path) -> None:
    """Gradients of packs, against those of the model on each document by itself."""
    model, (batch, sizes) = llama(), packs()
    data = [{name: tensor[i] for name, tensor in batch.items()} for i in range(3)]
    out = CausalLM("loss")
    featurize(
        model,
        data,
        tmp_path / "s",
        output=out,
        projector=ts.ProjectionSpec("identity"),
        progress=False,
    )
    split = ts.open_store(tmp_path / "s").split(0, "train")
    features, losses = (split.column(name).read(0, 3) for name in ("features", "loss"))
    for row, each in enumerate(sizes):
        parts = batch["input_ids"][row].split(each)
        sums = [
            F.cross_entropy(model(part[None]).logits[0, :-1], part[1:], reduction="sum")
            for part in parts
            if len(part) > 1
        ]
        loss = torch.stack(sums).sum() / (9 - len(each))
        assert losses[row] == pytest.approx(loss.item(), rel=1e-5)
        wanted = gradient(loss, model)
        found = torch.from_numpy(features[row])
        assert (found - wanted).norm() < 1e-5 * wanted.norm()


def test_tokens_that_begin_a_document_are_told_by_positions_or_numbers_of_documents() -> None:
    batch, sizes = packs()
    number = torch.stack(
        [torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n)) for n in sizes]
    )
    named = {"input_ids": batch["input_ids"], "seq_idx": number}
    for one in (batch, named):
        starts = sequences(nn.Embedding(WORDS, WORDS), one, "causal_lm").starts
        assert starts is not None
        assert [row.nonzero()[:, 0].tolist() for row in starts] == [[4, 7], [], [2, 3]]
    three = dict(
        batch, position_ids=torch.zeros(3, 3, 9).long()
    )  # as of models of pictures and text
    assert sequences(nn.Embedding(WORDS, WORDS), three, "causal_lm").starts is None
