"""From what the user names to uint8 batches: sources → plan → decode → loaders."""
