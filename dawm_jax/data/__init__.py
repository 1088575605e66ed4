"""Offline datasets: their sources, their flat host arrays, the normalised replay on the device, the
ring buffer, and the writer of Minari datasets.

It may import envs and what envs may import.
"""
