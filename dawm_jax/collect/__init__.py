"""Data that this package makes: soft actor-critic, its policies, and D4RL's tiers collected from
them.

It may import agents and what agents may import; methods do not see it.
"""
