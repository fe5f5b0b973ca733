"""Weights: found, read, and matched to a backbone."""
