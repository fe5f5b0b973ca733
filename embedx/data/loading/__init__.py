"""Loaders of batches, and the worker processes behind them."""
