"""The native team: every thread walks the same table of records, with a barrier after each.

No barrier follows where each thread made rows for itself alone.

Exports `team_worker(context, thread)`, which serves steps until stopped (it spins briefly, then
sleeps on a futex, so that an idle engine uses no CPU), and `team_step(context)`, which runs one
step with the caller as thread 0. The context is laid out in base/abi.py. Counters only ever grow:
nothing is reset. At a barrier eight threads at most write to one cache line: those of a larger team
arrive in groups, whose last goes on for all.
"""

from __future__ import annotations

from tidemill.base import abi
from tidemill.codegen.emitter import Function, Pointer, Registers, Value
from tidemill.codegen.isa import Isa
from tidemill.codegen.kernel import are_rows_copied
from tidemill.codegen.module import Module
from tidemill.codegen.types import BOOL, I64, PTR

SPINS_BEFORE_SLEEP = 20_000
SPINS_AT_BARRIER = 4_000
_FUTEX_WAIT_PRIVATE, _FUTEX_WAKE_PRIVATE = 128, 129


def emit_team(module: Module, isa: Isa) -> None:
    """Emit the walker and the two entry points."""
    walk = _emit_walk(module, isa)
    _emit_worker(module, isa, walk)
    _emit_step(module, isa, walk)


def _emit_walk(module: Module, isa: Isa) -> Function:
    f = module.function("team_walk", context=PTR, thread=I64)
    context, thread = f.args[0].as_pointer(I64), f.args[1]
    num_ops, num_threads = context[abi.CONTEXT_NUM_OPS], context[abi.CONTEXT_NUM_THREADS]
    records, profile = context[abi.CONTEXT_RECORDS].as_pointer(I64), context[abi.CONTEXT_PROFILE]
    phase_at = context.at(thread * 16 + abi.CONTEXT_PHASE)
    phase, clock, is_awaited = f.registers(I64), f.registers(I64), f.registers(BOOL)
    phase[0] = phase_at[0]
    clock[0] = 0
    is_profiled = profile.ne(0)
    with f.when(is_profiled):
        clock[0] = f.intrinsic("llvm.readcyclecounter", I64)
    with f.loop(0, num_ops) as i:
        record = records.at(i * abi.RECORD_WORDS)
        kernel = record[0].to(PTR)
        f.line(f"call void {kernel}({record.typed}, {thread.typed}, {num_threads.typed})")
        slot = (thread * num_ops + i) * 2
        _profile(f, profile, is_profiled, slot, clock)
        is_awaited[0] = num_threads > 1
        # The last op is always awaited: whoever called for the step may change what others read.
        with f.when(record[abi.RECORD_MADE_COPIES].ne(0) & (i + 1 < num_ops)):
            rows = record[1].as_pointer(I64)[0]
            is_copied = are_rows_copied(record, abi.RECORD_MADE_COPIES, rows, num_threads)
            is_awaited[0] = is_awaited[0] & is_copied.eq(0)
        with f.when(is_awaited[0]):
            phase[0] = phase[0] + 1
            _barrier(f, isa, context, thread, phase[0])
        _profile(f, profile, is_profiled, slot + 1, clock)
    phase_at[0] = phase[0]
    return f


def _barrier(f: Function, isa: Isa, context: Pointer, thread: Value, phase: Value) -> None:
    """Wait until the whole team has arrived at its barrier number `phase`.

    Spins for as long as a balanced op could keep the others busy, then sleeps: where another
    job holds a core, a spinning thread would keep the one that it waits for from running.
    """
    arrivals, sleepers = context.at(abi.CONTEXT_BARRIER), context.at(abi.CONTEXT_BARRIER_SLEEPERS)
    num_threads = context[abi.CONTEXT_NUM_THREADS]
    syscall, spins = context[abi.CONTEXT_SYSCALL].to(PTR), f.registers(I64)
    goal, goes_on = f.registers(I64), f.registers(BOOL)
    goal[0], goes_on[0] = phase * num_threads, 1
    with f.when(num_threads > abi.GROUP_THREADS):
        group = thread // abi.GROUP_THREADS
        members = (num_threads - group * abi.GROUP_THREADS).min(abi.GROUP_THREADS)
        line = context.at(group * 16 + (abi.CONTEXT_PHASE + 8))
        goes_on[0] = (line.atomic_add(1, "seq_cst") + 1).eq(phase * members)
        goal[0] = phase * ((num_threads + (abi.GROUP_THREADS - 1)) // abi.GROUP_THREADS)
    with f.when(goes_on[0]):
        is_last = (arrivals.atomic_add(1, "seq_cst") + 1) >= goal[0]
        with f.when(is_last & sleepers.atomic_load("seq_cst").ne(0)):
            isa.futex(f, syscall, arrivals, _FUTEX_WAKE_PRIVATE, num_threads)
    spins[0] = 0
    with f.repeat_until() as until:
        isa.pause(f)
        spins[0] = spins[0] + 1
        seen = arrivals.atomic_load()
        with f.when((seen < goal[0]) & (spins[0] > SPINS_AT_BARRIER)):
            sleepers.atomic_add(1, "seq_cst")
            isa.futex(f, syscall, arrivals, _FUTEX_WAIT_PRIVATE, seen)
            sleepers.atomic_add(-1, "seq_cst")
        until(arrivals.atomic_load() >= goal[0])


def _profile(
    f: Function, profile: Value, is_profiled: Value, slot: Value, clock: Registers
) -> None:
    """Add the cycles since the last mark: even slots are work, odd ones waiting."""
    with f.when(is_profiled):
        now = f.intrinsic("llvm.readcyclecounter", I64)
        cell = profile.as_pointer(I64).at(slot)
        cell[0] = cell[0] + (now - clock[0])
        clock[0] = now


def _emit_worker(module: Module, isa: Isa, walk: Function) -> None:
    f = module.function(abi.WORKER_SYMBOL, exported=True, context=PTR, thread=I64)
    context, thread = f.args[0].as_pointer(I64), f.args[1]
    go = context.at(abi.CONTEXT_GO)
    seen, spins = f.registers(I64), f.registers(I64)
    seen[0] = 0
    with f.repeat_until() as until_stopped:
        spins[0] = 0
        with f.repeat_until() as until_called:
            isa.pause(f)
            spins[0] = spins[0] + 1
            until_called(go.atomic_load().ne(seen[0]) | (spins[0] > SPINS_BEFORE_SLEEP))
        with f.when(go.atomic_load().eq(seen[0])):
            _sleep(f, isa, context, go, seen[0])
        with f.when(go.atomic_load().ne(seen[0])):
            seen[0] = seen[0] + 1
            with f.when(context.at(abi.CONTEXT_STOP).atomic_load().eq(0)), isa.own_float_mode(f):
                f.call(walk, context, thread)
        until_stopped(context.at(abi.CONTEXT_STOP).atomic_load().ne(0))


def _sleep(f: Function, isa: Isa, context: Pointer, go: Pointer, seen: Value) -> None:
    """Sleep until `go` moves; the count of sleepers tells the caller whether to wake anybody."""
    syscall = context[abi.CONTEXT_SYSCALL].to(PTR)
    context.at(abi.CONTEXT_SLEEPERS).atomic_add(1, "seq_cst")
    isa.futex(f, syscall, go, _FUTEX_WAIT_PRIVATE, seen)
    context.at(abi.CONTEXT_SLEEPERS).atomic_add(-1, "seq_cst")


def _emit_step(module: Module, isa: Isa, walk: Function) -> None:
    f = module.function(abi.STEP_SYMBOL, exported=True, context=PTR)
    context = f.args[0].as_pointer(I64)
    context.at(abi.CONTEXT_GO).atomic_add(1, "seq_cst")
    with f.when(context.at(abi.CONTEXT_SLEEPERS).atomic_load("seq_cst").ne(0)):
        syscall, num_threads = context[abi.CONTEXT_SYSCALL], context[abi.CONTEXT_NUM_THREADS]
        go = context.at(abi.CONTEXT_GO)
        isa.futex(f, syscall.to(PTR), go, _FUTEX_WAKE_PRIVATE, num_threads)
    with f.when(context.at(abi.CONTEXT_STOP).atomic_load().eq(0)), isa.own_float_mode(f):
        f.call(walk, context, 0)
