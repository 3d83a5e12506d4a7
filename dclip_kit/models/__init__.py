"""CLIP, the detector, regions and the teacher: what computes."""
