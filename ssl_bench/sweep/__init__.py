"""Many runs: a grid or a search of them, one after the other or as jobs of a cluster."""
