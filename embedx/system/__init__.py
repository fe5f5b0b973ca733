"""The machine and its processes: cores, memory, signals, child processes, the import of torch."""
