"""Analysis of scores: over epochs, by groups, of samples. Everything here only reads, and streams."""

from __future__ import annotations

from trakstore.analysis.changepoint import ChangePoint, change_point
from trakstore.analysis.concentration import gini, participation_ratio, positive_mass
from trakstore.analysis.distribution import distribution
from trakstore.analysis.evolution import evolution
from trakstore.analysis.group_influence import contrast, same_class_share
from trakstore.analysis.properties import Property, compare_properties, modular_addition
from trakstore.analysis.training_dynamics import dynamics_of, training_dynamics
from trakstore.analysis.trajectories import trajectories
from trakstore.analysis.transition import Transition, transition

__all__ = [
    "ChangePoint",
    "Property",
    "Transition",
    "change_point",
    "compare_properties",
    "contrast",
    "distribution",
    "dynamics_of",
    "evolution",
    "gini",
    "modular_addition",
    "participation_ratio",
    "positive_mass",
    "same_class_share",
    "training_dynamics",
    "trajectories",
    "transition",
]
