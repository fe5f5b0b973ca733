"""The files of a store, and nothing else."""
