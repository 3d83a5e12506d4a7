"""Searching pictures: an index on disk, rescoring, and a folder of one's own."""
