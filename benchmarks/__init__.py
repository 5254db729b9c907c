"""How fast gluepy runs DAGs, as ratios to the least that such a run can cost: `python -m benchmarks`."""
