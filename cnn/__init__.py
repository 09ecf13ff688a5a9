"""The feature extractor: a convolutional network in PyTorch that is trained on images and then computes their features.

This package does not import fastmlp; the command `fastmlp extract` uses both. The modules `fastmlp.cnn.description` and
`fastmlp.cnn.errors` can be imported without torch.
"""
