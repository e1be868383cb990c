"""What happens around the steps of a training: averaging, skipping, saving, logging."""
