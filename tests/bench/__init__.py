"""The benchmark: run by hand, see README.md beside this file."""
