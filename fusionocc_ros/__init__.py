"""The ROS 2 side of fusionocc: node, synchroniser, message conversion, bags."""
