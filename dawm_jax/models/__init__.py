"""Everything that is fitted before the agents: networks, diffusion, the world model, inverse
dynamics, Gaussian dynamics, and how they are optimised.

It may import data and what data may import.
"""
