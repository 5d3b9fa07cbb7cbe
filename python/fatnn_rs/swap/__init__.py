"""The steps of ``prepare``: find layers, watch the float model run, choose types, swap layers."""
