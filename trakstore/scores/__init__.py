"""One attribution method a file: a store in, :class:`~trakstore.linalg.factored.Scores` out."""
