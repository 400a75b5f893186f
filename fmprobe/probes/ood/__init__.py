"""Out-of-distribution detection by latent trajectories: the score, its baselines, and a detector that keeps."""
