"""Attribution methods: a store in, :class:`~trakstore.scores.factored.Scores` out.

A new one is a file here, and a line in ``METHODS`` of ``by_name.py``.
"""
