"""Pictures of occupancy, made without a display, a GPU or an OpenGL library."""
