"""How fast gluepy runs DAGs, as ratios to the least that such a run can cost: `python -m benchmarks`.

And how fast others do: `python -m benchmarks.peers`. Both write `results/`: figures, report and plots.
`python -m benchmarks.profile` tells where the time goes.
"""
