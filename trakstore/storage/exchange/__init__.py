"""Exchange with other programs: splits to ``.npy`` and Parquet, their save directories to stores."""
