"""Several devices: their processes, and who holds which weights."""
