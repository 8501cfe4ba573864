"""A plan for a budget: what each option costs (prices) and loses (sensitivities), and the best choice of them."""
