"""Pre-training methods, one file each; the file is the registration."""
