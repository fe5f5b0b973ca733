"""Decoders, which turn the bytes of inputs into rows of a batch."""
