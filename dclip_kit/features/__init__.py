"""Frozen features: made once, kept, and known by what they were made from."""
