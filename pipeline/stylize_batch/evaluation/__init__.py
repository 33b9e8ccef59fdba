"""Comparing models with each other and with the optimisation baseline (paper §6.2, Fig. 3)."""
