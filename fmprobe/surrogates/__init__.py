"""Decoders for encoders that have none, and the images they are trained on."""
