"""The approximate index of a store, by faiss."""
