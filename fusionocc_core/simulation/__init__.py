"""The procedural street that writes data sets in nuScenes format."""
