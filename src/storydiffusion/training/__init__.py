"""Training: Lightning modules and data, losses, optimizers, callbacks, checkpoints and loggers."""
