"""A CT phantom in patient millimetres, and the small studies made of it."""
