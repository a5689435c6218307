"""Verbs; the only place that parses arguments."""
