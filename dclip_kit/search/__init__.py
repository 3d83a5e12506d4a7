"""Searching pictures: exact search, rescoring, and a folder of one's own."""
