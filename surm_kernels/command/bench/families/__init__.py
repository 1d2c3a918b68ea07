"""A file a family of structures: its rivals, its cases, and what is claimed of them."""
