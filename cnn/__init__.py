"""The PyTorch feature extractor: a convolutional network as a description, its training, and features of images.

It knows nothing of fastmlp; cli.py chains the two. What needs no torch can be imported without it: `cnn.description`,
`cnn.errors`.
"""
