"""A search for faults with unusual networks, forged files and adversarial calls.

Run `python -m campaign --help` in tests/.
"""
