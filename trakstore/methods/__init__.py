"""Attribution methods, one a file: a store in, :class:`~trakstore.scores.factored.Scores` out."""
