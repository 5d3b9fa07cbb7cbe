"""Training by recipes. Only the command line, the demo and benchmarks import it."""
