"""Command lines for clusters; imports nothing of lm."""
