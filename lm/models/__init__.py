"""Architectures: configs that build a Model, and the families made of them."""
