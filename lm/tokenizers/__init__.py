"""Text <-> ids."""
