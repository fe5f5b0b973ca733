"""The comparison of all pairs of rows: duplicates, and the nearest rows of every row."""
