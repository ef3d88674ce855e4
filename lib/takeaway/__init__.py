"""What leaves the project: an encoder for other libraries, and the memory's measures for encoders from elsewhere."""

ENCODERS = "timm:NAME, torchvision:NAME, callable:MODULE:FUNCTION, FILE.py:FUNCTION, FILE.safetensors or FILE.onnx"
