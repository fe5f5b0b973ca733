"""The functions that Python programs call: an extraction by one line, and embeddings of images in memory."""
