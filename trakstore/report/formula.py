"""Formulas of methods in plain text, for the page's first screen."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trakstore.scores.factored import Scores
from trakstore.scores.parts import Part

# Term that is summed or averaged over epochs, by the name of the method.
_SCORES = {
    "trak": "φ(t)ᵀ (K + λI)⁻¹ φ(z)",
    "influence": "g(t)ᵀ (K + λI)⁻¹ g(z)",
    "tracin": "η g(t)ᵀ g(z)",
    "grad_dot": "g(t)ᵀ g(z)",
    "grad_cos": "cos(g(t), g(z))",
    "whitened_cos": "cos(A g(t), A g(z))",
}
_NAMES = {
    "trak": "TRAK",
    "influence": "influence functions",
    "tracin": "TracIn",
    "grad_dot": "GradDot",
    "grad_cos": "GradCos",
    "whitened_cos": "whitened cosine",
}


@dataclass(frozen=True)
class Formula:
    """Formula of the scores of a target t with a train sample z.

    Attributes
    ----------
    method : str
        Name of the method, for people.
    score : str
        The formula; empty for a method that has none here.
    symbols : tuple of (symbol, meaning)
        Its symbols, in their order.
    temperature : str or None
        Temperature of the model's probabilities; None for methods without one.
    damping : str or None
        Damping of the kernel; None for methods without one.
    """

    method: str
    score: str = ""
    symbols: tuple[tuple[str, str], ...] = ()
    temperature: str | None = None
    damping: str | None = None


def method_formula(scores: Scores, output: str | None, damping: str) -> Formula:
    """Write the formula of scores, with the settings that they were made with.

    Parameters
    ----------
    scores : Scores
    output : str or None
        Name of the model output whose gradients are stored.
    damping : str
        The damping as it was asked for: ``"c = 1"``, or ``"λ = 0.5"``.
    """
    name, weighting = scores.method, scores.parts[0].kernel
    method = _NAMES.get(name, name)
    if name not in _SCORES:
        return Formula(method)
    damped = None if scores.parts[0].factor is None else damping
    score, temperature = _over_epochs(scores), _temperature(name, weighting)
    at = f" at temperature {temperature}" if temperature not in (None, "none") else ""
    raised = "raised the output" if name == "trak" else "lowered the loss"
    # The meaning of a symbol may use further symbols, which are explained after it.
    meanings = {
        "τ": f"positive where training on z {raised} of t",
        "A": "(K + λI)^(−1/2)",
        "K": _kernel(scores.parts[0]),
        "φ": f"projected gradient of {f'the output ({output})' if output else 'the output'}",
        "g": "projected gradient of the loss",
        "η": "learning rate of the epoch",
        "λ": "c tr(K) / n",
        "Q": _scale(output, weighting),
        "p": f"the model's probability of the right answer{at}",
    }
    return Formula(method, score, tuple(_needed(score, meanings, damped)), temperature, damped)


def _needed(
    score: str, meanings: Mapping[str, str], damping: str | None
) -> Iterator[tuple[str, str]]:
    """Yield the symbols in the score, and in their explanations."""
    text = score
    for symbol, meaning in meanings.items():
        given = symbol == "λ" and damping is not None and damping.startswith("λ")
        # Latin letters are symbols only if they are not part of a word.
        if not given and re.search(rf"(?<![A-Za-z]){symbol}(?![a-z])", text):
            text += f" {meaning}"
            yield symbol, meaning


def _over_epochs(scores: Scores) -> str:
    one, scale = _SCORES[scores.method], " · Q(z)" if scores.method == "trak" else ""
    if len(scores.epochs) == 1:
        return f"τ(t, z) = {one}{scale}"
    alike = len({part.length for part in scores.parts}) == 1
    # The length of an epoch's gradients is the root of its λ.
    over = f"{scores.reduce}{'' if alike else ' weighed by 1/√λ'} over epochs of"
    if scale and scores.average == "factors":
        return f"τ(t, z) = [{over} {one}] · [mean over epochs of Q(z)]"
    return f"τ(t, z) = {over} {one}{scale}"


def _kernel(part: Part) -> str:
    """Write K of a part as a sum."""
    if part.sampled:
        return "Σ g gᵀ over labels drawn from the model, by the number of draws"
    if part.kernel.startswith("logistic"):
        return "Σ p (1 − p) φφᵀ over the train samples"
    return f"Σ {'g gᵀ' if part.kernel == 'loss' else 'φφᵀ'} over the train samples"


def _scale(output: str | None, weighting: str) -> str:
    if weighting.startswith("logistic") or output == "margin":
        return "1 − p"
    return "how much the loss falls as the output rises"


def _temperature(method: str, weighting: str) -> str | None:
    """Write the temperature of p, which only TRAK has."""
    if method != "trak":
        return None
    kind, _, degree = weighting.partition("-")
    return (degree or "1") if kind == "logistic" else "none"
