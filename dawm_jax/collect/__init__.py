"""Data that this package makes: soft actor-critic, its policies, and D4RL's tiers of data.

It may import agents and what agents may import; methods do not import it.
"""
