"""Towers that belong together: one recipe trained with several seeds, and what holds for it beyond one training."""
