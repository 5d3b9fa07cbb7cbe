"""A generator of unusual networks as source text, so that a failing one can be pasted.

A program grows step by step. A step adds lines to ``__init__`` and ``forward``. It runs at once on
real tensors and is kept if PyTorch accepts it. So every program is a model that runs, and no step
needs to know shape rules.

``program`` holds the text of a program, ``builder`` runs and keeps its steps, ``layers``,
``tensors``, ``writes`` and ``control_flow`` draw steps, and ``generate`` draws a whole program.
"""

from campaign.programs.generate import program
from campaign.programs.program import Program, Step, smaller_programs

__all__ = ["Program", "Step", "program", "smaller_programs"]
