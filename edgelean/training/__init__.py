"""Training: the loop over the data, the run folder and its checkpoints."""
