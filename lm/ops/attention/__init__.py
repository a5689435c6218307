"""Masked softmax attention behind one door, ``attend``."""
