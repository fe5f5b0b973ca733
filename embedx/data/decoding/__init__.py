"""Decoding inputs into rows of a batch."""
