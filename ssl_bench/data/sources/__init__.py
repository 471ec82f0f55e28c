"""Where images, clips and texts come from: a module for each kind of source."""
