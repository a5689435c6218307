"""Meshes, rule tables, and the one room where token axes are gathered and summed by hand."""
