"""Searching pictures: exact and approximate indexes, and a folder of one's own."""
