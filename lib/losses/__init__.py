"""Losses as pure functions: tensors in, a scalar out or one for each part, fp32 inside, sizes from shapes, no state."""
