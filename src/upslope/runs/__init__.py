"""A run: a folder with its configuration, metrics, checkpoints, and what is made of them."""
