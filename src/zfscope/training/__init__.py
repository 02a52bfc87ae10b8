"""Training a network: the Lightning module, checkpoints, progress, the run."""
