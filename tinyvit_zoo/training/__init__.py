"""Train: one loop, its optimizer and schedule, checkpoints, and the run directory."""
