"""The quality of synthetic transitions: distribution, simulator errors, terminations, returns.

The package may import `training` and what `training` may import.
"""
