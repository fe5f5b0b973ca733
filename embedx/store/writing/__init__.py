"""Writing a store."""
