"""p2psync keeps directories on any number of machines identical, over SSH or local paths."""

__version__ = "0.1.0"
