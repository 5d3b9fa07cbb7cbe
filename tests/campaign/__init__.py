"""A search for faults with unusual networks, forged files and calls with wrong arguments.

Run `python -m campaign --help` in tests/.
"""
