"""Optimizers and schedules: configs that build Optax transformations."""
