"""Evaluating a frozen encoder, or a copy of it that is trained."""
