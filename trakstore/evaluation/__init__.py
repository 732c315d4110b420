"""Whether scores are true: how far they can be trusted."""
