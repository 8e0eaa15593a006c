"""Data sets and the way from a SensorFrame to a Batch."""
