"""Checks that only a stranger's store needs."""
