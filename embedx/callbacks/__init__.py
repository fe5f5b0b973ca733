"""Callbacks: everything a run does besides the forward pass, one small class per file."""
