"""The report: its numbers, its map and its page."""
