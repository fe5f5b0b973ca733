"""What can be read from embeddings, by a linear head or by the nearest neighbours."""
