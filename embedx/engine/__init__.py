"""The test and fit loops, and the interface between them and callbacks: state, connectors, dispatch of hooks."""
