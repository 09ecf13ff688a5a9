"""`fastmlp bench`: engines and other libraries, timed on the same work."""
