"""The speed of this package beside that of the same method in PyTorch.

jax_side       the stages, compiled from the programs that training runs
torch_*        the same method as PyTorch users write it; the only modules that import torch
measure        rates in alternating turns, peak memory, time to the first step
flops          floating-point operations counted in a program
suite          one run: what is timed, and what is written
growth         costs at growing sizes
records        contents of the written JSON files
tables         Markdown and figures made of them
latency        the command that times decisions and generation; latency_cases has its cases
scaling        bytes that devices exchange, and a model of durations on several chips
"""
