"""Mathematics on a callable f and tensors: fixed-point engine, attractors, Jacobians, distances. Needs torch alone."""
