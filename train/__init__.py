"""Training of Transformers whose linear layers are sparse graphs."""
