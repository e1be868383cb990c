"""Lightning callbacks: weight averaging, skipped steps, checkpoints, preemption, logging."""
