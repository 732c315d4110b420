"""Passes over stored rows: planned, scheduled on threads or a Dask cluster, in bounded memory."""
