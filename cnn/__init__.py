"""The PyTorch feature extractor: description and training of a convolutional network, and extraction of features from images.

It does not import fastmlp, whose commands chain the two. `fastmlp.cnn.description` and `fastmlp.cnn.errors` can be imported
without torch.
"""
