"""Places that hold the bytes of a store: local folders, object storage, memory, any zarr store."""
