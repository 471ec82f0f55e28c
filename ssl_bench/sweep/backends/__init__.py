"""Where the cells of a sweep run: Slurm, this machine, this process."""
