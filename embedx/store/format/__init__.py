"""The files of a store: their names, their contents, and how each appears whole or not at all."""
