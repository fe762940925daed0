"""PIE-Bench: inversions and editors on 700 images with masks and prompts (Ju et al., arXiv 2310.01506)."""
