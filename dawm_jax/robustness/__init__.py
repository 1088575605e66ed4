"""Policies of finished runs in changed physics and with noise.

The package may import `training` and what `training` may import, and runs, statistics, cells and
figures of `report`.
"""
