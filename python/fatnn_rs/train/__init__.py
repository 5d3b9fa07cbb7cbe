"""Training recipes, one file each; imported by nothing but the command line and the demo."""
