"""`python -m gluepy`."""

from gluepy.cli import main

if __name__ == "__main__":
    main()
