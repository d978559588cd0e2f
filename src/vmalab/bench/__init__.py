"""How fast the model is: compiled, interpreted, and beside the kernel that runs here."""
