"""Class front-ends that people know: thin, built from the public functions."""

from __future__ import annotations

from trakstore.attributors.bias import BiasAttributor
from trakstore.attributors.over_time import DelayedGeneralizationTRAK, PhaseTransitionAttributor
from trakstore.attributors.tracin_attributor import TracInAttributor
from trakstore.attributors.tracker import TrainingDynamicsTracker
from trakstore.attributors.trak_attributor import TRAKAttributor, compute_attribution_stability
from trakstore.attributors.traker import ModelIDException, TRAKer
from trakstore.attributors.unprojected import unprojected_scores
from trakstore.features.callback import featurize_epoch, trainer_callback
from trakstore.features.loading import WithIds

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
    "unprojected_scores",
]
