"""Accuracy over labels per class, schedule and seeds."""
