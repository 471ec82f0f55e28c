"""What any package may use."""
