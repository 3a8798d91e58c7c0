"""Published experiments and recorded runs once more, and what comes of it."""
