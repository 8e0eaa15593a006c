"""Stateless functions on tensors: a readable reference each, fast paths where present."""
