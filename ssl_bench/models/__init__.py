"""Encoders, masks, and weights in everybody's formats."""
