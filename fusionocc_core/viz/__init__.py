"""Pictures of occupancy."""
