"""Training and evaluating in several processes."""
