"""Several runs on the same data: trained in parallel, and with several seeds."""
