"""Several runs: trained in parallel on the same data, with several seeds, and read from their folders."""
