"""A sweep: its study, the trials of it and what comes after them."""
