"""Lines of a table: each method's LDS with its interval, and its difference from the default."""

from __future__ import annotations

from typing import Any, Protocol

from trakstore.evaluation.lds import LDS, lds_difference


class Judge(Protocol):
    """Truth of one kind of model."""

    kind: str

    def judged(self, scores: Any) -> LDS: ...


class Lines:
    """What was found, line by line."""

    def __init__(self, ground: Judge) -> None:
        self.ground, self.found = ground, []  # type: ignore[var-annotated]
        self.default: LDS | None = None

    def add(self, table: str, name: str, scores: Any, **more: Any) -> LDS:
        """Judge and print scores, and return their LDS."""
        one = self.ground.judged(scores)
        self.default = self.default or one
        apart = lds_difference(one, self.default)
        told = {"model": self.ground.kind, "table": table, "name": name, "lds": one.mean}
        told |= {"low": one.low, "high": one.high, "subsets": one.subsets}
        told |= {"more": apart.mean, "more_low": apart.low, "more_high": apart.high}
        self.found.append(told | more)
        print(
            f"{told['model']:5} {table:12} {name:44} {one.mean:6.3f} [{one.low:.3f}, {one.high:.3f}]"
            f"  {apart.mean:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}]",
            flush=True,
        )
        return one
