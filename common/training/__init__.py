"""What every run does: options, device, processes, seeds, steps, checkpoints, interruption, metrics, files."""
