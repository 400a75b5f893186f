"""The mathematics of fmprobe, on any callable f and tensors: fixed-point engine, attractors, Jacobians, distances.

It needs torch alone.
"""
