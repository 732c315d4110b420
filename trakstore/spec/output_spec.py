"""The output of a store: the differentiated scalar of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trakstore import documents
from trakstore.quantities import as_whole, is_number, is_whole

_FIELDS = {
    "name": documents.text(),
    "options": documents.entries(documents.text(), documents.anything()),
}


@dataclass(frozen=True)
class OutputSpec:
    """The differentiated scalar of the model: a name and its options."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        # JSON holds only plain numbers, and the spec that is read back must compare equal.
        plain = tuple((name, _python_number(value)) for name, value in self.options)
        object.__setattr__(self, "options", plain)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        return {"name": self.name, "options": dict(self.options)}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> OutputSpec:
        """Read a result of :meth:`to_dict`."""
        known = documents.fields(document, _FIELDS, what="an output")
        return cls(known["name"], tuple(sorted(known["options"])))

    def differs_in_code_alone(self, other: OutputSpec) -> bool:
        """Tell whether all options but ``code``, the digest of a function, are the same."""
        # Outputs that are not functions have no code, so that they differ in something else.
        own, others = dict(self.options), dict(other.options)
        return "code" in own and {**own, "code": ""} == {**others, "code": ""}


def _python_number(value: Any) -> Any:
    """Return a number of any library as Python's own; anything else is returned unchanged."""
    if is_whole(value):
        return as_whole(value, "an option")
    return float(value) if is_number(value) else value
