"""Pre-training: loop, optimisers, schedules, states, budget, FLOPs."""
