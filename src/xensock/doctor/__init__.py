"""What this machine offers: each kernel feature tried for real, with a remedy."""
