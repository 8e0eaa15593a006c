"""Occupancy for the logs of a fleet: many workers, each keyframe's results exactly once, whatever dies in between."""
