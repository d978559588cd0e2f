"""What every process, device and pipe sees of the same pages, step by step, and where they part."""

from __future__ import annotations

import click

from vmalab.cli.common import json_option, print_json


@click.command()
@click.argument("script", metavar="SCRIPT", type=click.Path(exists=True, dir_okay=False))
@json_option
def ledger(script: str, as_json: bool) -> int:
    """Run a SCRIPT of processes, devices and pipes in the model, and show after each step who sees what.

    \b
    A line of a script is a step:
      kernel pins_break_cow = no       a behaviour of the kernel, before all steps
      file f "old"                     a file of one page
      show anon_vma                    say how each page is found from the memory's side
      P: map buf 1 [f] [ro] [shared] [thp] [hugetlb]
      P: write buf "text"              also: read, unmap, protect, advise, poke
      P: fork C                        also: exit
      dev: pin P buf [write] [force]   a long-term pin; also: splice, fixed
      dev: release                     also: read, write "text"

    Where somebody holds another page than its owner has, or sees what it should not, the line begins with "!".
    Exits with 1 if there is such a line.
    """
    from vmalab.explain.ledger import lines_of
    from vmalab.explain.script import read_script

    found = read_script(script)
    alarms = any(step.alarms() for step in found.steps)
    if as_json:
        steps = [
            {
                "number": step.number,
                "text": step.text,
                "said": step.said,
                "sights": [{**vars(sight), "content": sight.content.hex()} for sight in step.sights],
            }
            for step in found.steps
        ]
        print_json({"steps": steps, "parted": alarms})
    else:
        click.echo("\n".join([line for step in found.steps for line in lines_of(step)]))
    return 1 if alarms else 0
