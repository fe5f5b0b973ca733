"""What is made of a store's vectors: so far the probe, by a linear head or by the nearest neighbours."""
