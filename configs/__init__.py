"""Configurations; see common.py."""
