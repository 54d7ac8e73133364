"""Launches of a program on host memory, and what comes of them: findings and counts."""

from __future__ import annotations

import ctypes as c
import threading
from collections.abc import Container
from dataclasses import dataclass, field

import numpy as np

from . import native
from .decode import SHARED_BASE
from .program import Program, program_of
from .ptx import Instruction, PTXError

__all__ = ["Argument", "Finding", "Memory", "Options", "Program", "Result", "program_of", "run"]

RUNNING = threading.Lock()  # one launch at a time, as on a stream
ORDERS = ("forward", "backward", "ahead", "mixed")
HAZARDS = ("", "read-after-write", "write-after-read", "write-after-write")
KINDS = (  # in the order of machine.h
    "global-out-of-bounds", "global-outside-view", "global-misaligned", "global-uninitialised",
    "shared-out-of-bounds", "shared-misaligned", "shared-uninitialised", "shared-race",
    "global-race", "race-between-programs", "shared-race-ordered-by-shuffle-only",
    "global-race-ordered-by-shuffle-only", "barrier-in-divergent-code",
    "barrier-with-exited-threads", "barriers-differ", "warp-mask-not-converged",
    "integer-division-by-zero", "pointer-of-unknown-origin", "trap", "instruction-budget-exceeded",
    "data-dependent-branch", "data-dependent-guard", "data-dependent-shared-address",
    "data-dependent-global-address", "too-many-findings",
)  # fmt: skip
MOST_FINDINGS = 4096


@dataclass(frozen=True)
class Options:
    """How launches run and what is watched."""

    races: bool = True
    poison: int = 0xFF  # the byte that fills registers and shared memory
    # In which order programs run, and warps between barriers: "ahead" is one as far as it comes,
    # then the others in slices, "mixed" another of these each time. Default: forward without a
    # seed, mixed with one.
    order: str | None = None
    seed: int = 0
    # Whether what is loaded taints: all of it, or what is loaded through arguments of these names.
    taint: bool | Container[str] = False
    # A key by which results of approximate instructions are an ulp less or more, or as they are.
    approximate: int = 0
    budget: int = 1 << 33  # of warp instructions
    barriers: bool = False  # whether ``Result.needed`` is wanted

    def __post_init__(self) -> None:
        if self.order not in (None, *ORDERS):
            raise ValueError(f"order is {self.order!r}; choose one of {', '.join(ORDERS)}")

    def is_data(self, argument: str) -> bool:
        if isinstance(self.taint, bool):
            return self.taint
        return argument in self.taint or argument.partition("[")[0] in self.taint


@dataclass
class Finding:
    """What a sanitizer found at an instruction (and at another one, for races)."""

    kernel: str
    kind: str
    instruction: Instruction
    other: Instruction | None
    argument: str
    landed: str
    hazard: str
    same_value: int  # of ``count``: times that the value written was there already
    count: int
    address: int
    where: str
    threads: tuple[tuple[int, int], tuple[int, int]]  # (program, thread) of both

    @property
    def benign(self) -> bool:
        """A race of writes that left every time what was there: no order of them shows."""
        return self.hazard in HAZARDS[2:] and self.same_value == self.count

    def __str__(self) -> str:
        i, o = self.instruction, self.other
        text = f"{self.kernel}: {self.kind} x{self.count}: line {i.line} `{i.text}` ({i.source})"
        text += f" by program {self.threads[0][0]} thread {self.threads[0][1]}"
        if self.hazard:
            text += f", {self.hazard}"
            if self.same_value:
                text += f" (same value {self.same_value}x)"
        if o is not None:
            text += f", against line {o.line} `{o.text}` ({o.source})"
            text += f" by program {self.threads[1][0]} thread {self.threads[1][1]}"
        if self.argument:
            text += f", pointer {self.argument}"
        if self.where:
            text += f", {self.where}"
        if self.landed:
            text += f", in the memory of {self.landed}"
        return text


class Pages:
    """The table of a memory's shadow; the machine makes its pages."""

    def __init__(self, granules: int) -> None:
        self.table = np.zeros(granules // native.page() + 2, np.uint64)
        # Looked up now: while the interpreter ends nothing can be imported.
        self.free, self.address = native.library().free_shadow, self.table.ctypes.data

    def __del__(self) -> None:
        self.free(self.address, len(self.table))


@dataclass
class Memory:
    """Host memory that a launch may touch: which bytes were written (None: all), and a shadow."""

    lo: int
    hi: int
    granule: int = 4  # bytes that are watched for races as one
    written: np.ndarray | None = None
    shadow: Pages | None = None


@dataclass
class Argument:
    """A pointer parameter: the memory it points into and the part that its tensor covers."""

    name: str
    memory: Memory | None
    view_lo: int = 0
    view_hi: int = 0


@dataclass
class Result:
    findings: list[Finding]
    counts: np.ndarray  # per instruction the fields of native.Count
    # Per instruction, with the option ``barriers``: a program, from 1, two accesses of which it
    # alone orders; 0: there is none.
    needed: np.ndarray
    executed: int
    program: Program = field(repr=False)


def run(
    program: Program,
    grid: tuple[int, int, int],
    threads: int,
    shared: int,
    params: bytes,
    arguments: list[Argument],
    options: Options = Options(),
    programs: list[range] | None = None,
) -> Result:
    """Run a grid, or some ``programs`` of it; ``arguments`` go with the pointer parameters."""
    kernel = program.kernel
    pointers = [p for p in kernel.parameters if p.pointer]
    if len(pointers) != len(arguments):
        raise PTXError(f"{len(arguments)} pointers for {len(pointers)} parameters")
    block = max((p.offset + p.size for p in kernel.parameters), default=0)
    if len(params) != block:
        raise PTXError(f"{len(params)} bytes of parameters instead of {block}")

    memories = list({id(a.memory): a.memory for a in arguments if a.memory is not None}.values())
    allocs = (native.Alloc * (len(memories) + 1))()
    for x, m in zip(allocs, memories, strict=False):
        x.lo, x.hi, x.granule = m.lo, m.hi, m.granule
        x.written = m.written.ctypes.data if m.written is not None else None
        if options.races:
            if m.shadow is None:
                m.shadow = Pages((m.hi - m.lo) // m.granule)
            x.shadow = m.shadow.table.ctypes.data
    args = (native.Arg * (len(arguments) + 1))()
    number = {id(m): k for k, m in enumerate(memories)}
    for y, a in zip(args, arguments, strict=False):
        y.alloc = number.get(id(a.memory), -1)
        y.view_lo, y.view_hi, y.data = a.view_lo, a.view_hi, options.is_data(a.name)
    param_arg = np.zeros(block // 8 + 2, np.int32)
    for k, p in enumerate(pointers):
        param_arg[p.offset // 8] = k + 1

    counts = np.zeros((len(program.code), len(native.Count._fields_)), np.uint64)
    needed = np.zeros(len(program.code), np.int32)
    findings = (native.Finding * MOST_FINDINGS)()
    buffer = c.create_string_buffer(params, len(params) + 1)
    order = options.order or ("mixed" if options.seed else "forward")
    launch = native.Launch(
        grid=grid,
        threads=threads,
        shared_bytes=shared + program.static_shared,
        n_args=len(arguments),
        n_allocs=len(memories),
        n_params=block,
        params=c.addressof(buffer),
        param_arg=param_arg.ctypes.data,
        args=c.addressof(args),
        allocs=c.addressof(allocs),
        races=options.races,
        poison=options.poison,
        taint=bool(options.taint),
        order=ORDERS.index(order),
        seed=options.seed,
        approximate=options.approximate,
        budget=options.budget,
        counts=counts.ctypes.data,
        needed=needed.ctypes.data if options.barriers else None,
        findings=c.addressof(findings),
        max_findings=MOST_FINDINGS,
    )
    for span in programs if programs is not None else [range(grid[0] * grid[1] * grid[2])]:
        launch.cta_from, launch.cta_to = span.start, span.stop
        with RUNNING:
            native.library().run(c.byref(program.native), c.byref(launch))
    found = [described(f, program, arguments, shared) for f in findings[: launch.n_findings]]
    return Result(found, counts, needed, launch.executed, program)


def described(
    f: native.Finding, program: Program, arguments: list[Argument], shared: int
) -> Finding:
    kind, hazard = KINDS[f.kind], HAZARDS[f.hazard]
    lines = program.kernel.instructions

    def instruction(pc: int) -> Instruction:
        return lines[min(pc, len(lines) - 1)]  # the last may be the return that was added

    names = ["", *(a.name for a in arguments)]
    where = ""
    if kind.startswith("shared") and f.address:
        where = f"shared byte {f.address - SHARED_BASE} of {shared}"
    elif (kind.startswith("global") or "program" in kind or "pointer" in kind) and f.address:
        a = arguments[f.arg - 1] if f.arg else None
        if a is not None and a.memory is not None:
            where = f"byte {f.address - a.view_lo} of {a.view_hi - a.view_lo}"
        else:
            where = f"address {f.address:#x}"
    return Finding(
        kernel=program.kernel.name,
        kind=kind,
        instruction=instruction(f.pc),
        other=instruction(f.pc2) if hazard else None,
        argument=names[f.arg],
        landed=names[f.landed],
        hazard=hazard,
        same_value=f.same,
        count=f.count,
        address=f.address,
        where=where,
        threads=((f.cta, f.thread), (f.cta2, f.thread2) if hazard else (0, 0)),
    )
