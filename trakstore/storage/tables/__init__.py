"""Saved tables beside the features: scores, grams, training records, retrained models, runs."""
