"""Exchange with other programs: splits to ``.npy`` and Parquet, save directories to stores."""
