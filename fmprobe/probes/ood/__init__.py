"""Out-of-distribution detection by latent trajectories: scores, baselines, a detector, and their comparison."""
