"""Class front-ends that people know: thin, built from the public functions."""

from __future__ import annotations

from trakstore.attributors.bias import BiasAttributor
from trakstore.attributors.delayed import DelayedGeneralizationTRAK
from trakstore.attributors.dynamics import TrainingDynamicsTracker, WithIds
from trakstore.attributors.phases import PhaseTransitionAttributor
from trakstore.attributors.tracin import TracInAttributor
from trakstore.attributors.training import featurize_epoch, trainer_callback
from trakstore.attributors.trak import TRAKAttributor, compute_attribution_stability
from trakstore.attributors.traker import ModelIDException, TRAKer

__all__ = [
    "BiasAttributor",
    "DelayedGeneralizationTRAK",
    "ModelIDException",
    "PhaseTransitionAttributor",
    "TRAKAttributor",
    "TRAKer",
    "TracInAttributor",
    "TrainingDynamicsTracker",
    "WithIds",
    "compute_attribution_stability",
    "featurize_epoch",
    "trainer_callback",
]
