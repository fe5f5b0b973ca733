"""A run: `prepare` determines a `Job`, `extract` carries it out, `recompute` repeats a part of it."""
