"""Blocked linear algebra over stored rows, in bounded memory; nothing here knows of models."""
