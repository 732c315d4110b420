"""Options of featurizing that are attributes of a job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict

from trakstore.features.batches import Collate
from trakstore.features.blockcheck import CheckedRows
from trakstore.features.outputs import ModelOutput
from trakstore.features.scale import Scale
from trakstore.spec import FeatureDtype, Precision, ProjectionSpec

__all__ = ["JobOptions"]


class JobOptions(TypedDict, total=False):
    """Attributes of a job that :func:`.featurize.featurize` takes as keywords."""

    output: str | ModelOutput | None
    projector: ProjectionSpec | None
    parameters: str | Sequence[str]
    activations: str | Sequence[str]
    batch_size: int
    dtype: FeatureDtype | None
    collate: Collate | None
    block_rows: int | None
    keep_bits: int | None
    append: bool
    memory_limit: int | str | None
    precision: Precision
    autocast: Literal["bfloat16"] | None
    check: CheckedRows
    skip_bad_rows: bool
    scale: Scale
