"""Environments and tools of other people in worker processes: what answers the policy between the turns of an episode.

Nothing is imported here: workers import only what they need, without pydantic and without the trainer's side.
"""
