"""Reading inputs: local files and remote ones."""
