"""Several members that compute one store: processes of this machine, of a launcher such as torchrun, or of Ray."""
