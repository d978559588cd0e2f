"""System V segments of a run of lockstep."""

from __future__ import annotations

from typing import Final, final

from vmalab.calls import Call
from vmalab.flags import CLONE_NEWIPC, IPC_RMID
from vmalab.fuzz.divergence import Divergence, result_text
from vmalab.fuzz.files import FIRST_SEGMENTS
from vmalab.fuzz.ops import NUMBERS, Op
from vmalab.fuzz.translate import Resources
from vmalab.live.agent import Agent, Step
from vmalab.machine import Process

_UNSHARE: Final = 272


@final
class Segments:
    """Gives each run of an agent an IPC namespace of its own, where that is permitted, and its first segments."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._unshares: bool | None = None
        """Whether a run may have a namespace of its own; None before the first has asked for one."""

    def make(self, process: Process, resources: Resources) -> Divergence | None:
        """Begin a run, whose first process this is."""
        unshare = Call("unshare", (CLONE_NEWIPC,))
        asks = [Step(_UNSHARE, unshare.args)]
        if self._unshares is None:
            # Where it is refused, the segments would be everybody's.
            self._unshares = self._agent.run(asks, 1, report=0)[0].result == 0
            asks = []
        if not self._unshares:
            return None
        made = [Call("shmget", args) for args in FIRST_SEGMENTS]
        steps = asks + [Step(NUMBERS["shmget"], call.args) for call in made]
        replies = self._agent.run(steps, 1, report=0)[len(asks) :]
        process.do(unshare)
        for at, call in enumerate(made):
            outcome = process.do(call)
            if replies[at].result != outcome.result:
                found = (hex(outcome.result), result_text(replies[at].result))
                return Divergence(-1, Op("shmget", call.args, 0, at), "result", *found)
            resources.segments[at] = replies[at].result
        return None

    def remove(self, process: Process) -> None:
        """End a run: what it has locked of segments counts for the user, and is to go with its processes, not some
        time.
        """
        steps = [Step(NUMBERS["shmctl"], (each, IPC_RMID, 0)) for each in process.ipc.segments]
        self._agent.run(steps, 1, report=0)
