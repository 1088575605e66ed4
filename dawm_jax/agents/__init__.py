"""The offline agents, one file each, behind one protocol.

It may import models and what models may import.
"""
