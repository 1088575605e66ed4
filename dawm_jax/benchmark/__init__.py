"""The speed of this package, beside PyTorch's at the same work: `python -m dawm_jax.benchmark`.

suite       what is timed, in one run, and what is written
jax_side    the stages as the training runs them
torch_*     the same method as a PyTorch user would write it; the only files that import torch
measure     turns, medians, peak memory, time to the first step
flops       multiplications counted in a program
growth      how costs grow with the problem
tables      Markdown and figures from the numbers
"""
