"""A plugin that ends the program when it is imported: it must not take md with it."""

import sys

sys.exit(0)
