"""The readers of a store."""
