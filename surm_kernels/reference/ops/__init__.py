"""The operators in plain PyTorch, one file a primitive: what runs where there is no compiled kernel."""
