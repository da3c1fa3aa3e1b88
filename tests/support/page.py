# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands of a page in docs/, run just as they stand there.

    page = Page(ROOT / "docs" / "operation.rst")
    shell = Shell({"NODE": str(folder)})
    for command in page.commands("The machine is lost"):
        shell.run(command)

A command is a block of `.. code-block:: sh`. Nothing in it is replaced: what differs from one operator to the next are
shell variables that the page itself names. Blocking: call from a thread other than the reactor's. Owner: the test.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from .nodes import NodeFailed
from .services import plain_environment

COMMAND_LIMIT_S = 60
STOP_LIMIT_S = 60
_UNDERLINE = re.compile(r"([=~-])\1{3,}")
_BLOCK = re.compile(r"^( *)\.\. code-block:: sh\n\n((?:\1 +.*\n|\n)+)", re.MULTILINE)


class Page:
    """A page of documentation by its sections."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._sections: dict[str, str] = {}
        lines = path.read_text(encoding="utf-8").splitlines()
        title = ""
        for line, following in zip(lines, [*lines[1:], ""]):
            if line.strip() and _UNDERLINE.fullmatch(following):
                title = line
            self._sections[title] = self._sections.get(title, "") + line + "\n"

    def section(self, title: str) -> str:
        """Its text, without that of the sections below it; KeyError where there is none."""
        return self._sections[title]

    def commands(self, title: str) -> list[str]:
        """The blocks of shell commands of a section, in order; at least one."""
        found = [textwrap.dedent(block[2]).strip() for block in _BLOCK.finditer(self.section(title))]
        if not found:
            raise NodeFailed(f"{self.path.name} has no commands in the section {title!r}")
        return found

    def variables(self, title: str) -> set[str]:
        """The shell variables that a section sets."""
        return set(re.findall(r"^(?:export )?([A-Z_]+)=", "\n".join(self.commands(title)), re.MULTILINE))


def program(name: str) -> str:
    """A program of the virtualenv that runs the tests, or of the PATH."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        raise NodeFailed(f"there is no {name} beside {sys.executable}; pip install '.[test]'")
    return found


class Shell:
    """bash as an operator has it, with the variables that the page tells to set."""

    def __init__(self, home: Path, variables: Mapping[str, str]) -> None:
        self._home = home
        folders = [str(Path(program(name)).parent) for name in ("tahoe", "aws")]
        self._environment = {
            **plain_environment(),
            **variables,
            "HOME": str(home),
            "PATH": os.pathsep.join([*folders, os.environ["PATH"]]),
        }

    def set(self, name: str, value: str) -> None:
        self._environment[name] = value

    def _popen(self, command: str, output: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [program("bash"), "-e", "-u", "-o", "pipefail", "-c", command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=self._environment,
            cwd=self._home,
            start_new_session=True,
        )

    def run(self, command: str, *, typed: str = "") -> str:
        """Runs a command to its end; what it said. `typed`: what the operator types or pastes, then Ctrl-D."""
        process = self._popen(command, subprocess.PIPE)
        try:
            said = process.communicate(typed.encode(), timeout=COMMAND_LIMIT_S)[0].decode("utf-8", "replace")
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            raise NodeFailed(f"it did not end: {command}") from None
        if process.returncode != 0:
            raise NodeFailed(f"status {process.returncode} of\n{command}\n{said}")
        return said

    def begin(self, command: str, log: Path) -> Running:
        """Starts a command that goes on until it is stopped, in a terminal of its own as it were."""
        with log.open("ab") as output:
            return Running(self._popen(command, output.fileno()))


class Running:
    """A command that goes on, and all that it started."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def poll(self) -> int | None:
        return self.process.poll()

    def wait(self, limit_s: float = STOP_LIMIT_S) -> int:
        return self.process.wait(limit_s)

    def press_ctrl_c(self) -> None:
        """As the terminal does it; waits for the end."""
        _signal(self.process, signal.SIGINT)
        self.process.wait(STOP_LIMIT_S)
        self._close()

    def kill(self) -> None:
        """kill -9, or the power fails."""
        if self.process.poll() is None:
            _signal(self.process, signal.SIGKILL)
            self.process.wait(STOP_LIMIT_S)
        self._close()

    def _close(self) -> None:
        if self.process.stdin is not None:
            self.process.stdin.close()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """To the whole session that the process began, which holds nothing else."""
    os.killpg(process.pid, number)
