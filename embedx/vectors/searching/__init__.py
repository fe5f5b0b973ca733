"""The exact search for the rows nearest to queries."""
