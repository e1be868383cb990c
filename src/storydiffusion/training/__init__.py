"""What surrounds a training, whatever is learnt: optimizer, weight averaging, checkpoints."""
