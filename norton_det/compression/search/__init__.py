"""Searches for a plan under a budget: what each option costs (prices) and loses (sensitivities), and the best
choice."""
