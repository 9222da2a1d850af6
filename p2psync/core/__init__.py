"""The decisions: values in, values out. No files, clock, network, SQL, threads or randomness."""
