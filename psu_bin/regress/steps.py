"""Runs the steps of one scenario against one program: the only part of the harness that talks to the program.

psu-bin itself is called as a user calls it, as a command, so that what is tested is what is promised: exit status, JSON.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psu_bin
from psu_bin.attach import stacks
from psu_bin.attach.process import Process
from psu_bin.errors import PsuError
from psu_bin.regress import pause
from psu_bin.regress.children import Child, Children, Done
from psu_bin.regress.lines import Lines
from psu_bin.regress.scenario import PATIENCE, Scenario, Step

SHOWN = 5                # lines of output that a failure shows
TOOL_LIMIT = 300.0       # seconds for instrument
PLAIN = "main"           # the program before it is instrumented, in the folder


class Failed(Exception):
    """A step did not see what it expected; never leaves the package."""

    def __init__(self, expected: str, seen: str) -> None:
        super().__init__(expected, seen)
        self.expected = expected
        self.seen = seen


@dataclass
class Measures:
    """What was measured while the steps ran; None where nothing was."""
    attaches: int = 0
    attach_seconds: float = 0.0          # the longest attach or revert
    pause_seconds: float | None = None   # the longest pause around one
    control_seconds: float | None = None # the longest around a control command
    memory_kib: int | None = None        # growth of the resident set from before the first attach to the end
    retired: int | None = None           # patches with retired code at the end


@dataclass
class Session:
    """One run of a scenario's steps."""
    scenario: Scenario
    children: Children
    folder: Path                         # everything that is written goes here
    program: Path                        # instrumented
    patches: Mapping[str, Path]          # compiled
    variables: dict[str, str]
    short: bool
    log: list[str]
    measures: Measures = field(default_factory=Measures)
    child: Child | None = None
    lines: Lines | None = None
    _outputs: list[Lines] = field(default_factory=list)
    _connections: dict[str, tuple[socket.socket, Lines]] = field(default_factory=dict)
    _loads: list[tuple[str, Child, Path, float]] = field(default_factory=list)
    _memory_before: int | None = None
    current: Step | None = None          # what is being done, for who reports a failure

    # --- the steps

    def run(self, steps: tuple[Step, ...]) -> None:
        """Do `steps`; Failed for the first that fails."""
        for step in steps:
            self.children.check()
            self.current = step
            self.log.append(f"line {step.line}: {self.fill(step.title)}")
            try:
                getattr(self, f"_{step.action}")(step)
            except Failed as e:
                if not self.child or not self.child.ends():
                    raise
                child, self.child = self.child, None      # why it ended is told, too: most likely that is why the step failed
                ending = _ending(self.children.close(child), self.lines if step.action != "expect" else None)
                raise Failed(e.expected, f"{e.seen}\nthe program: {ending}") from None
            # What was sent may be what makes the program end: whether it should is what the next step says.
            if step.action not in ("stop", "expect", "send"):
                self._lives(step)

    def _lives(self, step: Step) -> None:
        if self.child and self.child.ends():
            child, self.child = self.child, None
            raise Failed("the program lives", _ending(self.children.close(child), self.lines))

    def _start(self, step: Step) -> None:
        arguments = [str(self.program), *(self.fill(a) for a in step.value)]
        try:
            self.child = self.children.start(arguments, self.folder, self._env(), stdout=subprocess.PIPE,
                                             stdin=subprocess.PIPE)
        except OSError as e:
            raise Failed(f"{arguments[0]} starts", str(e.strerror)) from None
        assert self.child.popen.stdout
        self.lines = Lines(self.child.popen.stdout)
        self._outputs.append(self.lines)
        self._memory_before = None

    def _expect(self, step: Step) -> None:
        where = self.fill(step.options["from"])
        lines = self._connection(where)[1] if where else self._lines_of()
        if step.options["fresh"]:
            lines.fresh()
        pattern = re.compile(self.fill(step.value.pattern, re.escape))
        reject = step.options["reject"]
        found, why = lines.find(pattern, reject, step.options["within"], self.children.check)
        if found is None:
            expected = f"a line that matches {pattern.pattern!r}" + (f", none that matches {reject.pattern!r}" if reject else "")
            if why == "its output ended" and not where:
                child, self.child = self.child, None
                if child:
                    self.children.wait(child, PATIENCE)
                    raise Failed(expected, _ending(self.children.close(child), lines))
            raise Failed(expected, why + _last(lines))
        self.variables.update({k: v for k, v in found.groupdict().items() if v is not None})

    def _send(self, step: Step) -> None:
        text, where = self.fill(step.value), self.fill(step.options["to"])
        data = (text if text.endswith("\n") else text + "\n").encode()
        try:
            if where:
                self._connection(where)[0].sendall(data)
            else:
                assert self.child and self.child.popen.stdin
                self.child.popen.stdin.write(data)
                self.child.popen.stdin.flush()
        except OSError as e:
            raise Failed(f"{text!r} can be sent", str(e.strerror or e)) from None

    def _attach(self, step: Step) -> None:
        if self._memory_before is None:
            self._memory_before = self._resident()
        done = self._change(step, "attach", *(str(self.patches[name]) for name in step.value))
        refused = step.options["refused"]
        if refused:
            if done.status != 1 or not refused.search(done.out):
                raise Failed(f"attach is refused with {refused.pattern!r}", _how(done))
            return
        self._succeeded("attach", done)
        self.measures.attaches += 1

    def _revert(self, step: Step) -> None:
        which = {"newest": (), "original": ("--original",)}.get(step.value, (str(step.value),))
        self._succeeded("revert", self._change(step, "revert", *which))

    def _change(self, step: Step, command: str, *arguments: str) -> Done:
        if self.scenario.checks.pause and self.scenario.checks.pause.ratio:
            begin = time.monotonic()
            self._succeeded("analyze", self.tool(step.options["within"], "analyze", str(self.folder / PLAIN), "--json"))
            self.measures.control_seconds = self._pause(step, begin, time.monotonic(), self.measures.control_seconds)
        begin = time.monotonic()
        done = self.tool(step.options["within"], command, str(self._pid()), *arguments, "--json")
        end = time.monotonic()
        self.measures.attach_seconds = max(self.measures.attach_seconds, end - begin)
        if self.scenario.checks.pause:
            self.measures.pause_seconds = self._pause(step, begin, end, self.measures.pause_seconds)
            if not self.scenario.checks.pause.ratio:      # with one, a longer control may still come
                self._check_pause()
        return done

    def _pause(self, step: Step, begin: float, end: float, before: float | None) -> float:
        """The longest pause around [begin, end], or `before` if that is longer."""
        assert self.scenario.checks.pause
        lines = self._lines_of()
        seen = pause.longest(lines, begin, end, self.scenario.checks.pause, PATIENCE, self.children.check)
        self._lives(step)
        if seen is None:
            told = self.scenario.checks.pause.told
            raise Failed("lines before and after, to measure the pause" + (f", that match {told.pattern!r}" if told else ""),
                         "none" + _last(lines))
        self.log.append(f"the longest pause: {seen:.6f} s")
        return max(seen, before or 0)

    def _check_pause(self) -> None:
        limits, m = self.scenario.checks.pause, self.measures
        if limits and m.pause_seconds is not None and m.pause_seconds > pause.allowed(limits, m.control_seconds):
            control = f", nor than {limits.ratio:g} times the control's" if m.control_seconds is not None else ""
            seen = f" (control: {m.control_seconds:.3f} s)" if m.control_seconds is not None else ""
            raise Failed(f"no pause longer than {limits.seconds:g} s around attach and revert{control}",
                         f"{m.pause_seconds:.3f} s{seen}")

    def _wait(self, step: Step) -> None:
        self._freed(step.value)

    def _freed(self, limit: float) -> None:
        done = self.tool(limit + PATIENCE, "wait", str(self._pid()), "--timeout", f"{limit:g}")
        if done.status:
            raise Failed(f"no retired code is left within {limit:g} s", _how(done) + "\n" + self._table())

    def _status(self, step: Step) -> None:
        deadline = time.monotonic() + step.options["within"]
        while True:
            seen = self._counts()
            if all(seen[state] == n for state, n in step.value.items()):
                return
            if time.monotonic() > deadline:
                wanted = ", ".join(f"{n} {state}" for state, n in step.value.items())
                raise Failed(f"status shows {wanted}", ", ".join(f"{n} {s}" for s, n in seen.items()) + "\n" + self._table())
            self.children.check()
            time.sleep(0.05)

    def _repeat(self, step: Step) -> None:
        times = step.options["short"] if self.short and step.options["short"] else step.value
        for n in range(times):
            self.log.append(f"round {n + 1} of {times}")
            self.variables["round"] = str(n + 1)
            self.run(step.steps)

    def _load(self, step: Step) -> None:
        command = self.fill(step.value)
        if not step.options["background"]:
            done = self.children.run(["/bin/sh", "-c", command], self.scenario.folder, self._env(), step.options["within"])
            self.log.append(done.out)
            if done.status != 0:
                raise Failed(f"{command} succeeds", _how(done))
            return
        out = self.folder / f"load{len(self._loads)}.out"
        with out.open("wb") as file:
            child = self.children.start(["/bin/sh", "-c", command], self.scenario.folder, self._env(), stdout=file)
        self._loads.append((command, child, out, step.options["within"]))

    def _stop(self, step: Step) -> None:
        self._finish_loads()
        self._final_checks(step)
        assert self.child
        child, within = self.child, step.options["within"]
        if step.value != "none":
            number = getattr(signal, f"SIG{step.value}")
            os.kill(child.pid, number)
        if not self.children.wait(child, within):
            raise Failed(f"the program ends within {within:g} s after {step.value}", "it lives" + _last(self._lines_of()))
        self.child = None
        status = self.children.close(child)
        allowed = {0} | (set() if step.value == "none" else {-number})
        if step.options["exit"] is not None:
            allowed = {step.options["exit"]}
        if status not in allowed:
            wanted = " or ".join(str(s) for s in sorted(allowed))
            raise Failed(f"the program ends with status {wanted}", _ending(status, self.lines))
        self._disconnect()

    def _finish_loads(self) -> None:
        while self._loads:
            command, child, out, within = self._loads.pop(0)
            in_time = self.children.wait(child, within)
            done = Done(self.children.close(child) if in_time else None, out.read_text(errors="backslashreplace"), within)
            if not in_time:
                self.children.close(child)
            self.log.append(f"load {command}: {done.out}")
            if done.status != 0:
                raise Failed(f"{command} succeeds", _how(done))

    def _final_checks(self, step: Step) -> None:
        """What [checks] promises for the end of a program's life; nothing when no patch came or the program ends by itself."""
        checks = self.scenario.checks
        self._check_pause()
        if step.value == "none" or self._memory_before is None:
            return
        self._lives(step)
        if checks.freed is not None:
            self._freed(checks.freed)
        self.measures.retired = self._counts()["retired"]
        self.measures.memory_kib = self._resident() - self._memory_before
        if checks.memory is not None and self.measures.memory_kib > checks.memory * 1024:
            raise Failed(f"memory grows by no more than {checks.memory:g} MiB", f"{self.measures.memory_kib / 1024:.1f} MiB more")

    # --- what the steps use

    def tool(self, limit: float, *arguments: str) -> Done:
        """Run psu-bin; its output is logged."""
        done = self.children.run([sys.executable, "-m", "psu_bin", *arguments], self.folder, self._env(tool=True), limit)
        self.log.append(f"psu-bin {' '.join(arguments)}: status {done.status}, {done.seconds:.3f} s\n{done.out.rstrip()}")
        return done

    def _succeeded(self, command: str, done: Done) -> None:
        if done.status != 0:
            raise Failed(f"psu-bin {command} succeeds", _how(done))

    def _counts(self) -> dict[str, int]:
        done = self.tool(PATIENCE, "status", str(self._pid()), "--json")
        self._succeeded("status", done)
        try:
            patches: list[dict[str, Any]] = json.loads(done.out)["patches"]
        except (ValueError, KeyError):
            raise Failed("psu-bin status --json prints one JSON object", done.out) from None
        states = [p["state"] for p in patches]
        return {"patches": len(states), **{s: states.count(s) for s in ("current", "retired", "freed")}}

    def _table(self) -> str:
        return self.tool(PATIENCE, "status", str(self._pid())).out.rstrip()

    def _pid(self) -> int:
        assert self.child
        return self.child.pid

    def _lines_of(self) -> Lines:
        assert self.lines
        return self.lines

    def _resident(self) -> int:
        """The program's resident set, KiB."""
        try:
            return stacks.resident(Process(self._pid())) >> 10
        except PsuError:
            return 0

    def fill(self, text: str, quote: Any = str) -> str:
        """`text` with {NAME} replaced where NAME is a variable; other braces (a pattern's) stay."""
        return re.sub(r"\{([A-Za-z_]\w*)\}", lambda m: quote(self.variables[m[1]]) if m[1] in self.variables else m[0], text)

    def _env(self, *, tool: bool = False) -> dict[str, str]:
        env = {**os.environ, "XDG_RUNTIME_DIR": str(self.folder), "TMPDIR": str(self.folder)}
        if tool:     # also from a source tree that is not installed
            paths = [str(Path(psu_bin.__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
            return {**env, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        given = {k: self.fill(v) for k, v in self.scenario.program.env.items()}
        known = {f"PSU_{k.upper()}": v for k, v in self.variables.items()}
        return {**env, **known, **given, **({"PSU_PID": str(self.child.pid)} if self.child else {})}

    def _connection(self, port: str) -> tuple[socket.socket, Lines]:
        if port not in self._connections:
            host, _, number = port.rpartition(":")
            try:
                s = socket.create_connection((host or "127.0.0.1", int(number)), PATIENCE)
            except (OSError, ValueError, OverflowError) as e:
                raise Failed(f"a connection to port {port}", getattr(e, "strerror", None) or str(e)) from None
            s.settimeout(None)
            lines = Lines(s.makefile("rb"))
            self._connections[port] = (s, lines)
            self._outputs.append(lines)
        return self._connections[port]

    def _disconnect(self) -> None:
        for s, _ in self._connections.values():
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass                       # the other side was first
            s.close()
        self._connections.clear()

    def close(self) -> None:
        """End whatever still runs."""
        for _, load, _, _ in self._loads:
            self.children.close(load)
        if self.child:
            self.children.close(self.child)
            self.child = None
        self._disconnect()
        for lines in self._outputs:
            lines.close()

    def output(self) -> str:
        return "".join(lines.text() for lines in self._outputs)


def _last(lines: Lines) -> str:
    last = lines.last(SHOWN)
    return "; the last lines:\n" + "\n".join(last) if last else "; nothing was printed"


def _ending(status: int, lines: Lines | None) -> str:
    if lines:
        lines.close()
    how = f"it ended by {signal.Signals(-status).name}" if status < 0 else f"it ended with status {status}"
    return how + (_last(lines) if lines else "")


def _how(done: Done) -> str:
    """How a command ended, as a failure shows it."""
    how = f"not ended after {done.seconds:.1f} s" if done.status is None else f"status {done.status}"
    return f"{how}: {done.out.strip() or 'no output'}"
