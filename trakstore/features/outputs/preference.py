"""Pairs of continuations of which one was preferred: direct preference optimisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trakstore.errors import TrakStoreError
from trakstore.features.outputs.language import CausalLM
from trakstore.features.outputs.model_output import Model, ModelOutput, RowOutputs, need_tensor
from trakstore.features.outputs.odds import precise, rounded
from trakstore.quantities import as_number
from trakstore.spec import OutputSpec

_SIDES = ("chosen", "rejected")


class DPO(ModelOutput):
    """The log-odds that the chosen continuation is preferred, beside a reference model.

    With r = log π(y|x) - log π_ref(y|x) of each continuation, output = β (r_chosen - r_rejected),
    loss = -log σ(output), ``out_to_loss`` = σ(-output). Source: Rafailov et al. (2023), Direct
    Preference Optimization, equation 7.

    Batches are dicts with ``chosen_input_ids`` and ``rejected_input_ids`` (prompt and continuation),
    ``chosen_labels`` and ``rejected_labels`` (-100 on the prompt and on padding), attention masks of
    the same prefixes where there is padding, and ``ref_chosen_logps`` and ``ref_rejected_logps``, the
    reference model's sums of log-probabilities over the tokens that count.

    Parameters
    ----------
    beta : float
        Inverse temperature β, above 0.

    Examples
    --------
    >>> DPO(beta=0.1).spec
    OutputSpec(name='dpo', options=(('beta', 0.1),))
    """

    name = "dpo"

    def __init__(self, beta: float = 0.1) -> None:
        self.beta = as_number(beta, "beta", above=0)

    @property
    def spec(self) -> OutputSpec:
        """Its name, and β."""
        return OutputSpec(self.name, (("beta", self.beta),))

    def __call__(self, model: Model, batch: Any) -> RowOutputs:
        """See :meth:`ModelOutput.__call__`."""
        chosen, dtype = _log_probability(model, batch, "chosen")
        rejected, _ = _log_probability(model, batch, "rejected")
        reference = precise(batch["ref_chosen_logps"]) - precise(batch["ref_rejected_logps"])
        odds = self.beta * (chosen - rejected - reference.reshape(-1))
        return rounded(RowOutputs(odds, F.softplus(-odds), torch.sigmoid(-odds)), dtype)

    def check(self, model: Model, batch: Any) -> int | None:
        """Check that a batch has both continuations, as the model takes them, and log-probabilities.

        Raises
        ------
        TrakStoreError
            When something is missing, or the model's logits do not fit the labels.
        """
        wanted = [f"{side}_{what}" for what in ("input_ids", "labels") for side in _SIDES]
        wanted += [f"ref_{side}_logps" for side in _SIDES]
        missing = [key for key in wanted if not isinstance(batch, Mapping) or key not in batch]
        if missing:
            raise TrakStoreError(
                f"dpo needs dicts with {', '.join(wanted)}; {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} missing"
            )
        strange = [key for key in batch if not key.startswith(("chosen_", "rejected_", "ref_"))]
        if strange:
            raise TrakStoreError(
                f"dpo takes keys of chosen_, rejected_ and ref_, the rows also have "
                f"{', '.join(map(repr, sorted(strange)))}: leave them out, or name them for each side"
            )
        for side in _SIDES:
            sums = need_tensor(batch[f"ref_{side}_logps"], f"ref_{side}_logps")
            if sums.numel() != len(batch["chosen_input_ids"]):
                raise TrakStoreError(
                    f"ref_{side}_logps must be one sum a sample, got shape {tuple(sums.shape)}"
                )
            _TOKENS.check(model, _side(batch, side))
        return None


# A sequence's loss is the sum of its tokens' here, so minus its log-probability.
_TOKENS = CausalLM(over="loss", reduction="sum")


def _side(batch: Mapping[str, Any], side: str) -> dict[str, Any]:
    """One continuation's part of a batch, under the names that a language model has for it."""
    prefix = f"{side}_"
    own = {key: value for key, value in batch.items() if key.startswith(prefix)}
    return {key.removeprefix(prefix): value for key, value in own.items()}


def _log_probability(model: Model, batch: Any, side: str) -> tuple[Tensor, torch.dtype]:
    loss = _TOKENS(model, _side(batch, side)).output
    return -precise(loss), loss.dtype
