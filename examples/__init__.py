"""What the methods do on real models: text classification, vision, a language model; `make examples` is a short run."""
