"""Batched augmentation: ``parameters`` draws every image's numbers, ``augment`` computes its view from them."""
