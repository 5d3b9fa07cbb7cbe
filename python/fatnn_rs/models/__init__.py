"""Models, one readable file each. They are plain float PyTorch: ``fatnn_rs.prepare`` makes them ternary."""
