"""What ``prepare`` does, step by step: find layers, watch the model, choose, swap."""
