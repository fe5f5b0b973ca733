"""The room of what is made of a store: probes, search, indexes, duplicates, reports and exports."""
