"""Several members that compute one store: processes of this machine, or of a launcher such as torchrun."""
