"""Measurements apart from the command line's, one file each; README.md says what they are for."""
