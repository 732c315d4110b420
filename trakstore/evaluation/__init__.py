"""Evaluations of scores: how far they can be trusted.

Evaluations that need torch are in modules of their own: ``training`` (``SubsetTrainer``), ``checks``
(``check_setup``) and ``efficiency`` (``efficiency_grid``).
"""

from __future__ import annotations

from trakstore.evaluation.agreement import stability
from trakstore.evaluation.intervals import mean_interval
from trakstore.evaluation.lds import LDS, Difference, lds, lds_difference, predicted_outputs
from trakstore.evaluation.removals import counterfactual
from trakstore.evaluation.retraining import (
    Retrained,
    Trainer,
    add_retrained,
    retrain,
    retrained_models,
)
from trakstore.evaluation.wrong_labels import Detection, detection, plant_noise
from trakstore.sampling import SubsetPlan

__all__ = [
    "LDS",
    "Detection",
    "Difference",
    "Retrained",
    "SubsetPlan",
    "Trainer",
    "add_retrained",
    "counterfactual",
    "detection",
    "lds",
    "lds_difference",
    "mean_interval",
    "plant_noise",
    "predicted_outputs",
    "retrain",
    "retrained_models",
    "stability",
]
