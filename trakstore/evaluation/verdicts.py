"""What a check of the set-up says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from trakstore.storage.layout import Epoch

__all__ = ["Check", "Verdict", "failing", "unless"]

Verdict: TypeAlias = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes
    ----------
    name : str
    of : str
        Of what: a split, or the job.
    verdict : {"pass", "warn", "fail"}
    number : float or None
        What was measured.
    meaning : str
        What the number is, in a few words.
    remedy : str
        What to do; empty for a pass.
    epoch : epoch or None
        At which; None where it is of none.
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
        """What it is of, with the epoch."""
        return self.of if self.epoch is None else f"{self.of} at epoch {self.epoch}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "where": self.where}


def unless(
    good: bool,
    name: str,
    of: str,
    number: float | None,
    meaning: str,
    remedy: str,
    otherwise: Verdict = "fail",
) -> Check:
    """A pass where all is good, else another verdict with what to do.

    The meaning is that of the number, and holds for either verdict.
    """
    if good:
        return Check(name, of, "pass", number, meaning)
    return Check(name, of, otherwise, number, meaning, remedy)


def failing(name: str, of: str, error: Exception, remedy: str) -> Check:
    """The verdict where a check could not be made at all."""
    return Check(name, of, "fail", None, " ".join(str(error).split()), remedy)
