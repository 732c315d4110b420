"""``trakstore evaluate``: commands that ask whether scores are true."""
