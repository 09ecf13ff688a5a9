"""The PyTorch feature extractor. It knows nothing of fastmlp; cli.py chains the two. Nothing is in it yet."""
