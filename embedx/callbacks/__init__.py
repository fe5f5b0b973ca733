"""Callbacks do everything in a run besides the forward pass; each file has one class."""
