"""Offline: text -> shards; plain Python, no JAX."""
