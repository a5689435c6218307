"""Runs on disk: saving, verifying and restoring state and data position."""
