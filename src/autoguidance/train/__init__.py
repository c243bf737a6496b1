"""Training: configuration and presets, the training stream, one step, the loop, and the run folder with its
checkpoints."""
