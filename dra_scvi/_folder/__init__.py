"""The folder of a saved model: written whole, read without running anything in it."""
