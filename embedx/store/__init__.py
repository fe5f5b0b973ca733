"""The output folder: its names and files, the process that writes it, and its readers."""
