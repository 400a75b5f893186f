"""Mathematics on a callable f and tensors: the fixed-point engine, attractors, Jacobians, distances. Needs torch alone."""
