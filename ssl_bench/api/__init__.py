"""What the author of a method or an evaluation sees."""
