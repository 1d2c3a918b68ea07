"""Small C++ modules through which the tests look into csrc/, and the helper that builds them."""
