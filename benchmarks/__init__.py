"""How fast a training is beside other people's code doing the same work: ``make bench``."""
