"""From stored images to the views that a training step sees."""
