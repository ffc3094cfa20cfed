"""The command line: the only module that prints or exits.

Each command calls one function of the package and shows what it returned.  Errors are one line on standard error and
exit status 1 (nothing was changed) or 2 (wrong usage).  Imports are inside the commands, so that `psu-bin status` does
not pay for what `instrument` needs.
"""

from __future__ import annotations

import io
import json as json_module
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from psu_bin import __version__
from psu_bin.errors import EXIT_USAGE, PsuError

if TYPE_CHECKING:
    from psu_bin.attach.status import Status
    from psu_bin.attach.transaction import AttachResult

MOST_NAMED = 20            # functions or files in one line
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
# Whether a file can be read is found out by reading it: a refusal, not wrong usage.
file_path = click.Path(path_type=Path, readable=False)


class _Seconds(click.FloatRange):
    """A time that passes: neither `nan` nor `inf`, which Python takes for numbers."""

    def __init__(self) -> None:
        super().__init__(min=0, max=1e9)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if seconds != seconds:
            self.fail(f"{value!r} is not a time.", param, ctx)
        return seconds


pid_argument = click.argument("pid", type=click.IntRange(min=1))


def _emit(value: dict[str, Any]) -> None:
    click.echo(json_module.dumps(value))


def _warn(text: str) -> None:
    click.echo(f"psu-bin: warning: {_one_line(text)}", err=True)


def _one_line(text: str) -> str:
    """Names of files and functions may hold anything: escapes in place of line ends, control codes and no UTF-8."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="psu-bin")
def commands() -> None:
    """Change C programs while they run."""


@commands.command()
@click.argument("binary", type=file_path)
@json_option
@click.option("--functions", multiple=True, metavar="GLOB", help="Only functions whose names match (repeatable).")
@click.option("--debug-file", type=file_path, help="Separate debug file with the symbols.")
def analyze(binary: Path, as_json: bool, functions: tuple[str, ...], debug_file: Path | None) -> None:
    """What of BINARY can be updated, what cannot and why."""
    from psu_bin.instrument.driver import analyze as run
    result = run(binary, functions, debug_file)
    if as_json:
        _emit({"binary": str(binary), "functions": len(result.functions), "call_sites": result.call_sites,
               "updatable": [f.name for f in result.functions],
               "not_updatable": [{"name": n.name, "reason": n.reason} for n in result.not_updatable]})
        return
    click.echo(f"{binary}: {len(result.functions)} functions can be updated, {result.call_sites} call sites")
    if result.not_updatable:
        click.echo(f"{len(result.not_updatable)} cannot:")
        for n in result.not_updatable:
            click.echo(f"  {n.name}: {n.reason}")


@commands.command()
@click.argument("binary", type=file_path)
@click.option("-o", "--output", type=file_path, help="Output file [default: BINARY.psu].")
@click.option("--functions", multiple=True, metavar="GLOB", help="Only functions whose names match (repeatable).")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these functions as they are (repeatable).")
@click.option("--debug-file", type=file_path, help="Separate debug file with the symbols.")
@click.option("--stub-symbols", is_flag=True, help="Name each stub FUNCTION.psu in the symbol table, for gdb and perf.")
@json_option
def instrument(binary: Path, output: Path | None, functions: tuple[str, ...], exclude: tuple[str, ...],
               debug_file: Path | None, stub_symbols: bool, as_json: bool) -> None:
    """Write an updatable copy of BINARY, and the shim beside it."""
    from psu_bin.instrument.driver import instrument as run
    result = run(binary, output, functions, exclude, debug_file, stub_symbols)
    if as_json:
        _emit({"output": str(result.output), "shim": str(result.shim), "functions": result.functions,
               "call_sites": result.call_sites,
               "not_updatable": [{"name": n.name, "reason": n.reason} for n in result.not_updatable]})
        return
    click.echo(f"{result.output}: {result.functions} functions updatable, {result.call_sites} call sites rerouted")
    click.echo(f"{result.shim}: the shim that it needs, found beside it")
    if result.not_updatable:
        click.echo(f"not updatable: {len(result.not_updatable)} (psu-bin analyze {binary} names them)")


@commands.command()
@pid_argument
@click.argument("patches", nargs=-1, required=True, type=file_path, metavar="PATCH.o...")
@click.option("--dry-run", is_flag=True, help="Check and link, but change nothing.")
@click.option("--wait", "wait_", is_flag=True, help="Return when no retired code is left.")
@click.option("--timeout", type=_Seconds(), metavar="S", help="Give up --wait after S seconds.")
@click.option("--allow-changed-types", is_flag=True, help="Even where types are not those of the program, by debug information.")
@json_option
def attach(pid: int, patches: tuple[Path, ...], dry_run: bool, wait_: bool, timeout: float | None, allow_changed_types: bool,
           as_json: bool) -> None:
    """Put PATCH.o... into process PID, all functions at one instant."""
    from psu_bin.attach.transaction import attach as run
    result = run(pid, patches, dry_run=dry_run, changed_types=allow_changed_types)
    for text in result.warnings:
        _warn(text)
    late = _wait_after(pid, timeout) if wait_ and not dry_run else None
    if as_json:
        _emit({"patch": result.patch, "functions": list(result.functions), "bytes": result.bytes,
               "seconds": {"total": time.monotonic() - _started, "link": result.seconds_link,
                           "commit": result.seconds_commit}, "threads_stopped": result.threads_stopped,
               "dry_run": dry_run, "warnings": list(result.warnings)})
    else:
        _show_attach(result, dry_run)
    if late:
        raise late


def _named(names: Sequence[str]) -> str:
    """Names of functions or files, as many as one reads; --json has all."""
    more = len(names) - MOST_NAMED
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:MOST_NAMED])} and {more} more"


def _show_attach(result: AttachResult, dry_run: bool) -> None:
    names = _named(result.functions)
    if dry_run:
        click.echo(f"would replace {names}: {result.bytes} bytes")
        return
    stopped = "no thread stopped" if not result.threads_stopped else f"{result.threads_stopped} thread borrowed"
    click.echo(f"patch {result.patch}: {names}: {result.bytes} bytes, {time.monotonic() - _started:.3f} s, "
               f"commit {result.seconds_commit * 1e6:.0f} us, {stopped}")


@commands.command()
@pid_argument
@click.option("--watch", is_flag=True, help="Show it again every second, until interrupted or the process ends.")
@json_option
def status(pid: int, watch: bool, as_json: bool) -> None:
    """Versions, activations and memory of process PID; stops nobody."""
    from psu_bin.attach.status import read
    while True:
        current = read(pid)
        if as_json:
            _emit(_status_json(current))
        else:
            _show_status(current)
        if not watch:
            return
        sys.stdout.flush()
        time.sleep(1)
        if not as_json:
            click.echo()


def _status_json(s: Status) -> dict[str, Any]:
    return {"pid": s.pid,
            "modules": [{"path": m.path, "build_id": m.build_id, "functions": m.functions} for m in s.modules],
            "agent": s.agent,
            "patches": [{"id": p.id, "name": p.name, "state": p.state, "functions": list(p.functions),
                         "activations": p.activations, "bytes": p.bytes, "kept_because": p.kept_because}
                        for p in s.patches]}


def _show_status(s: Status) -> None:
    for m in s.modules:
        click.echo(f"{m.path}: {m.functions} updatable functions, build-id {m.build_id or 'none'}")
    click.echo(f"agent: thread {s.agent}" if s.agent else "agent: none yet")
    if not s.patches:
        click.echo("no patches")
        return
    click.echo(f"{'patch':>5}  {'state':8} {'active':>6} {'bytes':>9}  name: functions")
    for p in s.patches:
        click.echo(f"{p.id:>5}  {p.state:8} {p.activations:>6} {p.bytes:>9}  {_named(p.name.split(', '))}: {_named(p.functions)}")
        if p.kept_because:
            click.echo(f"       kept because {p.kept_because}")


@commands.command(short_help="Back to the version before a patch.")
@pid_argument
@click.argument("patch_id", required=False, type=click.IntRange(min=1), metavar="[ID]")
@click.option("--original", is_flag=True, help="Back to the program's own code, for every function.")
@click.option("--wait", "wait_", is_flag=True, help="Return when no retired code is left.")
@click.option("--timeout", type=_Seconds(), metavar="S", help="Give up --wait after S seconds.")
@json_option
def revert(pid: int, patch_id: int | None, original: bool, wait_: bool, timeout: float | None, as_json: bool) -> None:
    """Back to the version before patch ID (default: the newest patch)."""
    if original and patch_id is not None:
        raise PsuError("--original", "takes no patch id", status=EXIT_USAGE)
    from psu_bin.attach.revert import revert as run
    result = run(pid, patch_id, original=original)
    for text in result.warnings:
        _warn(text)
    late = _wait_after(pid, timeout) if wait_ else None
    if as_json:
        _emit({"reverted": list(result.reverted), "functions": list(result.functions),
               "seconds": {"total": time.monotonic() - _started, "link": result.seconds_link,
                           "commit": result.seconds_commit}, "threads_stopped": result.threads_stopped})
    else:
        ids = ", ".join(str(i) for i in result.reverted)
        click.echo(f"reverted patch {ids}: {_named(result.functions) or 'no function changed'}")
    if late:
        raise late


@commands.command()
@pid_argument
@click.option("--timeout", type=_Seconds(), metavar="S", help="Give up after S seconds, exit status 1.")
@json_option
def wait(pid: int, timeout: float | None, as_json: bool) -> None:
    """Wait until process PID holds no retired code."""
    _wait_until_freed(pid, timeout)
    if as_json:
        _emit({"pid": pid, "retired": 0, "seconds": time.monotonic() - _started})


@commands.command(short_help="Run scenarios of the regression harness.")
@click.argument("scenarios", nargs=-1, required=True, type=file_path, metavar="SCENARIO.toml...")
@click.option("-j", "--jobs", "parallel", type=click.IntRange(min=1), default=1, show_default=True, help="How many at a time.")
@click.option("--only", multiple=True, metavar="AXIS=VALUE", help="Only these of the matrix: cc, opt, link, threads (repeatable).")
@click.option("--short", is_flag=True, help="The first of each matrix axis, and the short number of each repeat.")
@click.option("--check", is_flag=True, help="Only read the scenarios.")
@click.option("--json", "json_file", type=file_path, metavar="FILE", help="Write the results as JSON.")
@click.option("--junit", type=file_path, metavar="FILE", help="Write the results as JUnit XML.")
@click.option("--logs", type=file_path, default=Path("regress-logs"), show_default=True, help="Where logs of failures go.")
def regress(scenarios: tuple[Path, ...], parallel: int, only: tuple[str, ...], short: bool, check: bool,
            json_file: Path | None, junit: Path | None, logs: Path) -> None:
    """Build, instrument, run, patch and check programs as SCENARIO.toml says; exit status 1 when one fails."""
    from psu_bin.regress import matrix, report, runner, scenario
    found = [scenario.read(file) for file in scenarios]
    todo = runner.jobs(found, matrix.parse_only(only), short=short)
    if check:
        click.echo(f"{len(found)} scenarios, {len(todo)} combinations")
        return
    terminal, running, done, ending = sys.stderr.isatty(), list[runner.Job](), 0, False

    def show() -> None:
        if terminal:
            click.echo(f"\r\033[K{report.progress(done, len(todo), running)}" if running else "\r\033[K", nl=False, err=True)

    def began(job: runner.Job) -> None:
        running.append(job)
        show()

    def ended(result: runner.Result) -> None:
        nonlocal done
        done += 1
        running.remove(result.job)
        if terminal:
            click.echo("\r\033[K", nl=False, err=True)
        for line in [report.row(result), *(report.failure(result.failure).split("\n") if result.failure else [])]:
            tell(_one_line(line))
        show()

    def interrupted(*_: object) -> None:
        nonlocal ending
        if not ending:           # once is enough: nothing stops the cleaning up
            ending = True
            raise KeyboardInterrupt

    def tell(line: str) -> None:
        try:
            click.echo(line)
        except BrokenPipeError:      # whoever reads the output is gone: then, too, what was started is ended
            _discard_output()
            raise KeyboardInterrupt from None

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, interrupted)
    # A program that does not read what a step sends has failed a step, no more.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    tell(report.HEADER)
    results = runner.run(todo, parallel, logs, short=short, began=began, ended=ended)
    tell(report.summary(results))
    if json_file:
        report.write_json(results, json_file)
    if junit:
        report.write_junit(results, junit)
    if any(r.outcome == "failed" for r in results):
        sys.exit(1)


def _wait_after(pid: int, timeout: float | None) -> PsuError | None:
    """Wait after a commit.  What went wrong is told after the result, because the commit itself stands."""
    try:
        _wait_until_freed(pid, timeout)
    except PsuError as e:
        return PsuError(e.where, f"the change is in, but {e.what}", e.hint)
    return None


def _wait_until_freed(pid: int, timeout: float | None) -> None:
    from psu_bin.attach.status import wait as run
    run(pid, timeout)


_started = time.monotonic()


def _fail(error: PsuError) -> NoReturn:
    click.echo(f"psu-bin: {_one_line(str(error))}", err=True)
    sys.exit(error.status)


def _discard_output() -> None:
    """For what is left in the buffer at the end, of standard output that cannot be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unwritten(error: OSError) -> NoReturn:
    """Output that cannot be written is an error like others; anything else that click.echo did not raise is a defect."""
    at = error.__traceback__
    while at and at.tb_next:
        at = at.tb_next
    if not at or at.tb_frame.f_code is not click.echo.__code__:
        raise error
    _discard_output()
    _fail(PsuError("standard output", f"cannot be written: {error.strerror}", "the command itself has been carried out"))


def main() -> None:
    """Entry point of the `psu-bin` command."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")      # names of files need not be UTF-8
    try:
        commands.main(prog_name="psu-bin", standalone_mode=False)
    except PsuError as e:
        _fail(e)
    except click.exceptions.Abort:
        click.echo("psu-bin: interrupted", err=True)
        sys.exit(130)
    except click.exceptions.NoArgsIsHelpError as e:
        click.echo(e.format_message(), err=True)
        sys.exit(EXIT_USAGE)
    except click.UsageError as e:
        command = e.ctx.command_path if e.ctx else "psu-bin"
        message = e.format_message().rstrip(".")
        where = command.removeprefix("psu-bin").strip() or "usage"      # every message begins with psu-bin already
        _fail(PsuError(where, message[:1].lower() + message[1:], f"see {command} --help", status=EXIT_USAGE))
    except click.ClickException as e:
        _fail(PsuError("psu-bin", e.format_message(), status=e.exit_code))
    except click.exceptions.Exit as e:
        sys.exit(e.exit_code)
    except OSError as e:
        _unwritten(e)
    except MemoryError:
        _fail(PsuError("memory", "not enough of it"))


if __name__ == "__main__":
    main()
