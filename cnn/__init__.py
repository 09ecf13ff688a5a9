"""The PyTorch feature extractor: a convolutional network as a description, its training, and features of images.

It knows nothing of fastmlp; the commands chain the two. What needs no torch can be imported without it:
`fastmlp.cnn.description`, `fastmlp.cnn.errors`.
"""
