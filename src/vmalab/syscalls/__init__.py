"""The memory system calls: argument checks and the order of effects, one file a family.

Every function takes the address space and the arguments as unsigned integers, and returns the result (0 or an address),
or minus a Reason.
"""
