"""Losses as pure functions: tensors in, a scalar out, fp32 inside, sizes from shapes, no state."""
