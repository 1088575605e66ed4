"""How good generated data is: its errors against a simulator, its distribution, its terminations.

It may import training and what training may import.
"""
