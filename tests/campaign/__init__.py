"""A search for faults: unusual networks, forged files, adversarial calls. `python -m campaign --help` from tests/."""
