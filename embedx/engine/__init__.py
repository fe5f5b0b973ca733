"""The loops, and the seam between them and everything else: trainer state, connectors, dispatch of hooks."""
