"""Score matrices in factored form: the ``Scores`` object, and what streams over its tiles."""
