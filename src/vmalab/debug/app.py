"""x"""


class DebuggerApp:
    """x"""

    def __init__(self, debugger: object) -> None: ...
    def run(self) -> None:
        """x"""
