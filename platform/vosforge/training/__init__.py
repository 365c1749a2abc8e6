"""Training: curricula, losses, the bare loop, checkpoints; the Ray Train harness lives in one file, `on_ray`."""
