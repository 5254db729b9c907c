"""Other pipeline libraries on the same workloads: `python -m benchmarks.peers`.

Each has a virtual environment and a script of its own; a script imports nothing else of this project than what is
plain Python (`graphs`, `work`, `floors`, `measuring`).
"""
