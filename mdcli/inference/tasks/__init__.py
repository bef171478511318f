"""What becomes of a network's outputs beyond label maps: classes, boxes, instances, numbers."""
