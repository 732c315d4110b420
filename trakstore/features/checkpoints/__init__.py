"""Weights of a model at its epochs: one stored format a file."""

from trakstore.features.checkpoints.by_epoch import by_epoch, need_epochs, need_files
from trakstore.features.checkpoints.formats import Checkpoint, weights_file
from trakstore.features.checkpoints.loading_weights import load_weights
from trakstore.features.checkpoints.trainer_folder import TrainerFolder

__all__ = [
    "Checkpoint",
    "TrainerFolder",
    "by_epoch",
    "load_weights",
    "need_epochs",
    "need_files",
    "weights_file",
]
