"""The embedded default: sprites, scenes, captions, and pre-training of small real models."""
