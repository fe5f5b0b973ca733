"""Readers of the bytes of inputs, from local files and URLs."""
