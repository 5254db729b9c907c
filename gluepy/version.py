"""The version, said once: reading it from the installed package would cost every run some milliseconds."""

VERSION = "2.0.0"
