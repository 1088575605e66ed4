"""The comparison of finished runs: statistics, tables, figures, published numbers.

It may import envs and runtime alone: it reads files.
"""
