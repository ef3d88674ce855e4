"""Features in, numbers out: linear probe, nearest neighbours, t-SNE; and the study's own protocol."""
