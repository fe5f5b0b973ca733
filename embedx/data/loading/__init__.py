"""Named DataLoaders and the worker processes behind them."""
