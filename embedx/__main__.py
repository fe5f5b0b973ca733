"""`python -m embedx`."""

from embedx.cli.app import main

if __name__ == "__main__":
    main()
