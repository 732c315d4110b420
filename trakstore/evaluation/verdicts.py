"""Checks of the set-up: a verdict, a number with its meaning, and a remedy."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from trakstore.storage.layout import Epoch

Verdict: TypeAlias = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes
    ----------
    name : str
        A few words that are true where it passes.
    of : str
        The split or the job that was checked.
    verdict : {"pass", "warn", "fail"}
    number : float or None
        The measured number; None where nothing can be measured.
    meaning : str
        A few words about the number.
    remedy : str
        Advice; empty for a pass.
    epoch : epoch or None
        Epoch of the split; None where the check is of none.
    """

    name: str
    of: str
    verdict: Verdict
    number: float | None
    meaning: str
    remedy: str = ""
    epoch: Epoch | None = None

    @property
    def where(self) -> str:
        """The split or job, with the epoch."""
        return self.of if self.epoch is None else f"{self.of} at epoch {self.epoch}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "where": self.where}


def pass_if(
    good: bool,
    name: str,
    of: str,
    number: float | None,
    meaning: str,
    remedy: str,
    otherwise: Verdict = "fail",
) -> Check:
    """Return a pass where all is good, else another verdict with the remedy.

    The meaning is that of the number, and holds for either verdict.
    """
    if good:
        return Check(name, of, "pass", number, meaning)
    return Check(name, of, otherwise, number, meaning, remedy)
