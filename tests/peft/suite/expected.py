"""What of PEFT's own tests is meant to fail. One that passes nevertheless, or is not there, makes the run fail."""

_PICKLED = "saves a pickled file, which our methods refuse to load"
_ROUNDED = "wants 1e-5 of each number where a logarithm near 0 has an error of 1e-6 of the largest"

#: By a test's name and a part of its case's, the reason.
FAILURES = {
    ("test_save_pretrained_pickle", ""): _PICKLED,
    ("test_save_load_roundtrip_fsdp_wrapped_learnable_bias", "MLP 1 HyDRA low_rank"): _ROUNDED,
}
