"""The store as a whole: properties that all of its features share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from trakstore import documents
from trakstore.errors import TrakStoreError
from trakstore.quantities import is_one_of, shown
from trakstore.spec.output_spec import OutputSpec
from trakstore.spec.parameter_spec import ParameterSpec
from trakstore.spec.projection_spec import ProjectionSpec
from trakstore.spec.scale_spec import ScaleSpec
from trakstore.spec.whole_fields import set_whole

__all__ = ["FORMAT_VERSION", "FeatureDtype", "Precision", "StoreSpec"]

FORMAT_VERSION = 2

FeatureDtype = Literal["float32", "float16", "int8"]
Precision = Literal["float32", "tf32", "bfloat16"]
LessPrecise = Literal["tf32", "bfloat16"]

_FIELDS = {
    "projection": documents.made_by(ProjectionSpec.from_dict, "a projection"),
    "output": documents.optional(documents.made_by(OutputSpec.from_dict, "an output")),
    "parameters": documents.optional(
        documents.made_by(ParameterSpec.from_dict, "a list of parameters")
    ),
    "dtype": documents.one_of(*get_args(FeatureDtype)),
    "keep_bits": documents.optional(documents.whole(1, 23)),
    "autocast": documents.optional(documents.one_of(*get_args(LessPrecise))),
    "scale": documents.optional(documents.made_by(ScaleSpec.from_dict, "a scale of gradients")),
}
# These fields are younger than the format, and older versions refuse fields that they do not know: a
# store without them must stay readable for all versions.
_LATER = ("autocast", "scale")


@dataclass(frozen=True)
class StoreSpec:
    """Properties that all features of a store share.

    ``output`` and ``parameters`` are ``None`` in a store for features made elsewhere. With ``dtype``
    ``"int8"``, features are integers of 8 bits, times a scale for each row. With ``keep_bits`` the
    mantissas of float32 features are rounded to so many bits before they are written, and compressed.
    ``autocast`` is the precision of the model's products, if less than that of its parameters.
    ``scale`` names the factors by which gradients were multiplied before the projection, if any.
    """

    projection: ProjectionSpec
    output: OutputSpec | None = None
    parameters: ParameterSpec | None = None
    dtype: FeatureDtype = "float32"
    keep_bits: int | None = None
    autocast: LessPrecise | None = None
    scale: ScaleSpec | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.projection, ProjectionSpec):
            raise TrakStoreError(
                f"projection must be a ProjectionSpec, such as ProjectionSpec('sjlt', dim=2048), "
                f"got {self.projection!r}"
            )
        made_by = {"output": OutputSpec, "parameters": ParameterSpec}
        for name, kind in made_by.items():
            value = getattr(self, name)
            if not isinstance(value, kind | None):
                raise TrakStoreError(
                    f"{name} needs {kind.__name__}(...) or None, got {shown(value)}: leave it out for "
                    f"a store of features that were made elsewhere"
                )
        if self.autocast is not None and not is_one_of(self.autocast, get_args(LessPrecise)):
            known = ", ".join(get_args(LessPrecise))
            raise TrakStoreError(
                f"products are in {known} or None for float32, got {self.autocast!r}"
            )
        if not is_one_of(self.dtype, get_args(FeatureDtype)):
            known = ", ".join(get_args(FeatureDtype))
            raise TrakStoreError(f"features are stored as {known}, got {self.dtype!r}")
        if self.keep_bits is not None and self.dtype != "float32":
            raise TrakStoreError(
                f"keep_bits rounds float32 to 1 to 23 bits, got {self.keep_bits} for {self.dtype}"
            )
        set_whole(self, "keep_bits", 1, 23, "rounds float32 to 1 to 23 bits")

    @property
    def dim(self) -> int | None:
        """Number of features; ``None`` if only the first written split will tell."""
        return self.projection.features(self.parameters.count if self.parameters else None)

    @cached_property
    def rows_digest(self) -> str:
        """SHA-256 of everything that determines a sample's features at given weights.

        Splits record it, so that one copied from a store of other features is recognised. The way rows
        are stored is not part of it, nor are the patterns by which parameters were chosen.
        """
        own = self.to_dict()
        decisive = {name: own.get(name) for name in ("output", "autocast", "scale")}
        # The test vector follows from kind and version. A later field must be left out if it is empty,
        # or no older split would belong to its store any more.
        decisive["projection"] = {k: v for k, v in own["projection"].items() if k != "test_vector"}
        decisive["shapes"] = own["parameters"] and own["parameters"]["shapes"]
        text = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        document = {
            "projection": self.projection.to_dict(),
            "output": self.output.to_dict() if self.output else None,
            "parameters": self.parameters.to_dict() if self.parameters else None,
            "dtype": self.dtype,
            "keep_bits": self.keep_bits,
        }
        later = {"autocast": self.autocast, "scale": self.scale and self.scale.to_dict()}
        return document | {name: value for name, value in later.items() if value}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> StoreSpec:
        """Read a result of :meth:`to_dict`."""
        return cls(**documents.fields(document, _FIELDS, _LATER, "the store's document"))
