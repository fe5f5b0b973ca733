"""The checks that only a stranger's store needs."""
