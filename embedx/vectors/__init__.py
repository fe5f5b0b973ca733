"""The room of tools that work on a store's vectors: so far the probe, linear or by nearest neighbours."""
