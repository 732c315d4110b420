"""Weights of a model at its epochs: one stored format a file."""

from trakstore.features.checkpoints.formats import Checkpoint, weights_file
from trakstore.features.checkpoints.loading_weights import load_weights
from trakstore.features.checkpoints.trainer_folder import TrainerFolder

__all__ = ["Checkpoint", "TrainerFolder", "load_weights", "weights_file"]
