"""Flax modules and their configs; they name logical axes and know no mesh."""
