"""Environments: registered tasks, simulators of many copies, episodes of a policy, and scores.

It may import runtime.
"""
