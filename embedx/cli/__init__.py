"""The command line: data goes to stdout, notices and errors go to stderr."""
