"""What every command needs whatever it computes: flags, the training loop, checkpoints, metrics,
devices, processes, the run's folder.

It knows no reinforcement learning and imports `types` alone.
"""
