"""What a run trains before its agents, and what the agents learn from: one file a method.

It may import config and what config may import; it does not import collect.
"""
