"""Batched augmentation: ``draws`` chooses every image's numbers, ``augment`` computes its view from them."""
