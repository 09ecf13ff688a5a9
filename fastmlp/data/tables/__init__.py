"""From a table to a data set: the choice of the target and the features, and their encoding as numbers."""
