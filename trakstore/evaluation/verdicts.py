"""What a check of the set-up says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

__all__ = ["Check", "Verdict", "failing", "unless"]

Verdict: TypeAlias = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes
    ----------
    name : str
    where : str
        Of what: a split at an epoch, or the job.
    verdict : {"pass", "warn", "fail"}
    number : float or None
        What was measured.
    meaning : str
        What the number is, in a few words.
    remedy : str
        What to do; empty for a pass.
    """

    name: str
    where: str
    verdict: Verdict
    number: float | None
    meaning: str
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def unless(
    good: bool,
    name: str,
    where: str,
    number: float | None,
    meaning: str,
    remedy: str,
    otherwise: Verdict = "fail",
) -> Check:
    """A pass where all is good, else another verdict with what to do."""
    if good:
        return Check(name, where, "pass", number, meaning)
    return Check(name, where, otherwise, number, meaning, remedy)


def failing(name: str, where: str, error: Exception, remedy: str) -> Check:
    """The verdict where a check could not be made at all."""
    return Check(name, where, "fail", None, " ".join(str(error).split()), remedy)
