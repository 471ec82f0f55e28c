"""The run folder, and all run folders as tables."""
