"""A run: determined, computed, updated, recomputed, summed up."""
