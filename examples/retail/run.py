#!/usr/bin/env python3
"""The command line of this project, from any folder: `./run.py dag preprocess`, `./run.py --help`."""

import sys
from pathlib import Path

if __name__ == "__main__":  # worker processes import this file too
    from gluepy.cli import main

    main(["--project", str(Path(__file__).resolve().parent), *sys.argv[1:]])
