"""``python -m vmalab``: the command line."""

from vmalab.cli import main

if __name__ == "__main__":
    main()
