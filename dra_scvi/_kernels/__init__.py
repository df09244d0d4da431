"""Compiled loops over counts, and the likelihoods made of them; they know nothing of modules."""
