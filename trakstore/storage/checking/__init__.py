"""Verification of a store: a walk through all of it, each block against its commit record, repair."""
