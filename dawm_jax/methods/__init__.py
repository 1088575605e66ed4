"""What a run trains before its agents and what the agents learn from, one file a method.

It may import agents and what agents may import.
"""
