"""Runs the command line: ``python -m cl_callbacks fit --config configs/digits.yaml``."""

from cl_callbacks.cli import main

if __name__ == "__main__":
    main()
