"""Exports to the files of other programs."""
