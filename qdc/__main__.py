"""``python -m qdc``."""

from qdc.cli import main

if __name__ == "__main__":
    main()
