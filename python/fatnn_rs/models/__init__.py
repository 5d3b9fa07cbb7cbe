"""Float PyTorch models, one readable file each; ``fatnn_rs.prepare`` makes them ternary."""
