"""The way from `--data` to batches: sources list the inputs, a plan orders them, loaders read and decode them."""
