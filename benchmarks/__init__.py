"""Measurements behind every claim about speed; each script writes the table beside it."""
