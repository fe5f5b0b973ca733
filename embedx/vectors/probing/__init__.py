"""The probes: linear, or by nearest neighbours."""
