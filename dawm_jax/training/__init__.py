"""The fused program, and a run's artefacts: results, loading, generation, the cost of its stages.

It may import methods and collect, and what they may import.
"""
