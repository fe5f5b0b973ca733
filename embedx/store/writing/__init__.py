"""The writers of a store: one run's hold of it, and the process that commits its units."""
