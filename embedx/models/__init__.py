"""Backbones by name, as modules that turn uint8 batches into features."""
