"""Runtimes: engines of the forward pass, one file each."""
