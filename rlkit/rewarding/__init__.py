"""Reward functions in worker processes, which may hang, die and be replaced without harm to the run; and sandboxes for unknown code.

Nothing is imported here: workers import only what they need, without pydantic and without the trainer's side.
"""
