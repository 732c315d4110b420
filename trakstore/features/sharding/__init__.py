"""Models that are spread over ranks: the same features as of one process, to rounding."""

from __future__ import annotations

from trakstore.features.sharding.finding import sharding_of
from trakstore.features.sharding.on_meta import built_on_meta, with_memory
from trakstore.features.sharding.places import local_part, own_part, whole_tensor
from trakstore.features.sharding.sharding import WHOLE, Sharding, Take
from trakstore.features.sharding.slices import Span, is_part
from trakstore.features.sharding.starting import (
    Shard,
    shard_blocks,
    shard_model,
    started_ranks,
)

__all__ = [
    "WHOLE",
    "Shard",
    "Sharding",
    "Span",
    "Take",
    "built_on_meta",
    "is_part",
    "local_part",
    "own_part",
    "shard_blocks",
    "shard_model",
    "sharding_of",
    "started_ranks",
    "whole_tensor",
    "with_memory",
]
