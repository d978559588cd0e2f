"""Real kernels: what a running system shows of address spaces, and the recorder."""
