"""What leaves the project: an encoder for other libraries, and the memory's measures for encoders from elsewhere."""
