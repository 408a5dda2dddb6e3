"""Operators: one task each for creating, asking, and deleting, and one for whole batches."""
