"""Going through a trace step by step, forward and back: the debugger, with or without a terminal."""
