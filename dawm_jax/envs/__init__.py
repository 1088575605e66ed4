"""Simulators: many copies stepped together, whole episodes of a policy, and the scores of their
returns.

It may import runtime.
"""
