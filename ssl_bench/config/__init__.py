"""The settings of commands, methods and evaluations."""
