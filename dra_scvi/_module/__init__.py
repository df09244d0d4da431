"""The neural networks and the mathematics: prior, discriminators, divergences, embedding."""
