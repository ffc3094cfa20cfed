"""Runs scenarios: each cell of each matrix is one job with a temporary folder of its own: build, instrument, steps, clean up.

Jobs run in threads, their work in processes.  Whatever ends a job, its processes are killed and its folder removed; only the
log of one that failed is kept.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from psu_bin.errors import EXIT_USAGE, PsuError
from psu_bin.regress.children import Cancelled, Children
from psu_bin.regress.matrix import LINK_FLAGS, REFUSED, Cell, cells
from psu_bin.regress.scenario import Scenario
from psu_bin.regress.steps import PLAIN, TOOL_LIMIT, Failed, Measures, Session, _how

BUILD_LIMIT = 600.0      # seconds for a compiler or build command


@dataclass(frozen=True)
class Job:
    scenario: Scenario
    cell: Cell


@dataclass(frozen=True)
class Failure:
    where: str               # FILE:LINE
    step: str
    expected: str
    seen: str
    log: Path | None


@dataclass(frozen=True)
class Result:
    """outcome: passed; refused (instrument said no, as it must for this link mode); skipped; failed."""
    job: Job
    outcome: str
    seconds: float
    measures: Measures
    failure: Failure | None = None
    note: str = ""


def jobs(scenarios: Sequence[Scenario], only: dict[str, tuple[str, ...]], *, short: bool) -> list[Job]:
    """All jobs; PsuError when `only` leaves none, or two scenarios have one name: results and logs go by it."""
    for i, s in enumerate(scenarios):
        if s.name in (other.name for other in scenarios[:i]):
            raise PsuError(str(s.file), f"is the second scenario of this name: {s.name}", "give it a name = ...",
                           status=EXIT_USAGE)
    found = [Job(s, c) for s in scenarios for c in cells(s.matrix, only, short=short)]
    if not found:
        raise PsuError("--only", "leaves no combination of any scenario's matrix")
    return found


def run(todo: Sequence[Job], parallel: int, logs: Path, *, short: bool, began: Callable[[Job], None],
        ended: Callable[[Result], None]) -> list[Result]:
    """Run `todo`, `parallel` at a time; results in the order of `todo`.  `began` and `ended` are called one at a time, by threads.
    KeyboardInterrupt, and what those raise, ends every process, removes every folder and goes on to the caller."""
    children, lock = Children(), threading.Lock()

    def one(job: Job) -> Result:
        children.check()
        with lock:
            began(job)
        result = _job(job, children, logs, short=short)
        with lock:
            ended(result)
        return result

    with ThreadPoolExecutor(parallel) as pool:
        futures = []
        try:
            for job in todo:
                futures.append(pool.submit(one, job))
            # Waiting with a limit: a signal is noticed at once, whatever the platform's lock does.
            while not all(f.done() for f in futures):
                for f in futures:
                    if f.done():
                        f.result()       # what `began` or `ended` raised ends the others, too
                time.sleep(0.02)
            return [f.result() for f in futures]
        except BaseException:
            children.cancel()
            for f in futures:
                f.cancel()
            raise


def _job(job: Job, children: Children, logs: Path, *, short: bool) -> Result:
    begin = time.monotonic()
    measures = Measures()
    if job.cell.missing:
        return Result(job, "skipped", 0, measures, note=job.cell.missing)
    folder = Path(tempfile.mkdtemp(prefix="psu-regress-"))
    variables = {"threads": str(job.cell.threads), "cc": job.cell.cc, "opt": job.cell.opt, "link": job.cell.link,
                 "folder": str(folder)}
    session = Session(job.scenario, children, folder, folder / "main.psu", {}, variables, short, [], measures)
    try:
        note = _build(job, session)
        if note:
            return Result(job, "refused", time.monotonic() - begin, measures, note=note)
        session.run(job.scenario.steps)
        if session.child:
            session.current = None
            raise Failed("a stop step at the end", "the program lives when the last step is done")
        return Result(job, "passed", time.monotonic() - begin, measures)
    except Failed as e:
        children.check()     # a program that Ctrl-C killed did not fail
        session.close()
        step = session.current
        where = f"{job.scenario.file}:{step.line if step else 1}"
        title = session.fill(step.title) if step else "build"
        failure = Failure(where, title, e.expected, e.seen, _keep(job, session, logs, e))
        return Result(job, "failed", time.monotonic() - begin, measures, failure)
    except Cancelled:
        raise
    except Exception:        # a defect of the harness is a failure of this job, told in full, not the end of the others
        session.close()
        defect = Failed("the harness works", traceback.format_exc())
        failure = Failure(str(job.scenario.file), "harness", defect.expected, defect.seen, _keep(job, session, logs, defect))
        return Result(job, "failed", time.monotonic() - begin, measures, failure)
    finally:
        session.close()
        shutil.rmtree(folder, ignore_errors=True)


def _build(job: Job, session: Session) -> str:
    """Compile and instrument.  Returns instrument's refusal where the link mode calls for one, else ""."""
    scenario, cell = job.scenario, job.cell
    plain, program = session.folder / PLAIN, scenario.program
    # Flags may name other files of the scenario's folder: everything is compiled there, and the symbols say plain names.
    flags = ["-g", *cell.opt.split(), *program.flags]
    if program.binary:
        try:
            shutil.copy(scenario.folder / program.binary, plain)
        except OSError as e:
            raise Failed(f"{program.binary} can be copied", str(e)) from None
    elif program.build:
        env = {**session._env(), "CC": cell.cc, "CFLAGS": " ".join([*flags, *LINK_FLAGS[cell.link]]), "OUT": str(plain)}
        _command(session, ["/bin/sh", "-c", program.build], env)
    else:
        _command(session, [*cell.cc.split(), "-o", str(plain), *program.sources, *flags, *LINK_FLAGS[cell.link]])
    if not plain.is_file():
        raise Failed(f"the build writes {plain.name} ($OUT)", "there is no such file")
    for name, source in scenario.libraries.items():
        library = session.folder / f"{name}.so"
        _command(session, [*cell.cc.split(), *flags, "-fPIC", "-shared", "-I.", source, "-o", f"{library}.plain"])
        session._succeeded("instrument", session.tool(TOOL_LIMIT, "instrument", f"{library}.plain", "-o", str(library)))
    patches = {}
    for name, source in scenario.patches.items():
        patches[name] = scenario.folder / source
        if not source.endswith(".o"):
            patches[name] = session.folder / f"{name}.o"
            code = ("-fPIC",) if scenario.libraries else () if cell.link in REFUSED else LINK_FLAGS[cell.link][:1]
            _command(session, [*cell.cc.split(), *flags, *code, "-I.", "-c", source, "-o", str(patches[name])])
    session.patches = patches
    chosen = [x for glob in program.functions for x in ("--functions", glob)]
    chosen += [x for glob in program.exclude for x in ("--exclude", glob)]
    done = session.tool(TOOL_LIMIT, "instrument", str(plain), "-o", str(session.program), *chosen)
    if cell.link in REFUSED:
        if done.status != 1 or "static" not in done.out:
            raise Failed(f"psu-bin instrument refuses a {cell.link} program and says so", _how(done))
        return done.out.strip().removeprefix("psu-bin: ").replace(f"{plain}: ", "")
    session._succeeded("instrument", done)
    return ""


def _command(session: Session, arguments: list[str], env: dict[str, str] | None = None) -> None:
    done = session.children.run(arguments, session.scenario.folder, env or session._env(), BUILD_LIMIT)
    session.log.append(f"{shlex.join(arguments)}: status {done.status}\n{done.out}")
    if done.status != 0:
        raise Failed(f"{shlex.join(arguments)} succeeds", _how(done))


def _keep(job: Job, session: Session, logs: Path, e: Failed) -> Path | None:
    """Write the log of a failed job; None where that cannot be done, which is no reason to lose the result."""
    name = f"{job.scenario.name}-{job.cell}".replace(" ", "_").replace("/", "_")
    path = logs / f"{name}.log"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([f"{job.scenario.file}: {job.cell}", *session.log, f"expected: {e.expected}", f"seen: {e.seen}",
                                   "", "what the program printed:", session.output()]), errors="backslashreplace")
    except OSError:
        return None
    return path
