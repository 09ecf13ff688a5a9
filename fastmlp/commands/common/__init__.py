"""What all commands share: output streams and exit codes, options, and the import of the feature extractor."""
