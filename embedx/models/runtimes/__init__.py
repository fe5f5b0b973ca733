"""The runtimes: engines of the forward pass, one file each."""
