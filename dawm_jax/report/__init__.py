"""The comparison of finished runs: statistics, tables, figures, published scores.

The package reads results.json files. It imports `types`, `runtime` and `envs.scores` only.
"""
