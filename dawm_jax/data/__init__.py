"""Offline data: sources behind one `load_dataset`, flat arrays on the host, the normalised replay
on the device, the ring buffer of generated data, and the writer of Minari datasets.

It may import envs and what envs may import.
"""

# D4RL's tiers of locomotion data, and the data of scripted controllers, which the room of
# collection makes. They are defined here because --help lists them and need not wait for the import
# of JAX.
TIERS = ("random", "medium", "medium-replay", "expert", "medium-expert", "scripted")
