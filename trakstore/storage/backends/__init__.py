"""Places that hold the bytes of a store: local folders, object storage, memory, any zarr store.

A new kind of place is a zarr store in a file of its own here, which ``open_location`` of
``location.py`` opens for its URLs. A zarr store object that somebody has opened needs neither.
"""
