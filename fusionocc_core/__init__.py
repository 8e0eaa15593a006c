"""3D semantic occupancy from cameras and LiDAR: networks, data, training.

Knows nothing of ROS; importing does nothing.
"""

__version__ = "0.1.0"
