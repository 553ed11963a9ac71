"""fairseq's training, made the same at any world size."""
