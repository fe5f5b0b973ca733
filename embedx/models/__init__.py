"""From a backbone's name to a module that turns uint8 batches into features."""
