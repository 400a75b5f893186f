"""Probes: one file a question asked of an Autoencoder."""
