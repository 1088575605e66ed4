"""Policies of finished runs in changed physics and with noise.

The package may import `training` and what `training` may import, and the statistics of `report`.
"""
