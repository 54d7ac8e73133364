"""Where lanes part and meet again, and in which orders warps and programs run."""

from __future__ import annotations

import numpy as np
import pytest

from .by_hand import ORDERS, START, STORE, launch, stored

# ---- divergence


def test_threads_that_leave_loops_one_by_one() -> None:
    body = """
    mov.b32 %r3, 0;
    mov.b32 %r4, %r0;
    $LOOP:
    setp.gt.s32 %p1, %r4, 0;
    @!%p1 bra $OUT;
    and.b32 %r5, %r4, 1;
    setp.eq.s32 %p2, %r5, 1;
    @%p2 bra $ODD;
    shr.u32 %r4, %r4, 1;
    bra $NEXT;
    $ODD:
    sub.s32 %r4, %r4, 3;
    setp.lt.s32 %p3, %r4, -1;
    @%p3 bra $OUT;
    $NEXT:
    add.s32 %r3, %r3, 1;
    bra $LOOP;
    $OUT:
    bar.warp.sync -1;
    """

    def steps(x: int) -> int:
        count = 0
        while x > 0:
            x = x - 3 if x & 1 else x >> 1
            if x < -1:
                break
            count += 1
        return count

    for order in ORDERS:
        got, _ = stored(body + STORE, 128, order=order)
        assert got == [steps(x) for x in range(128)]


@pytest.mark.parametrize("exchange", [True, False])
def test_lanes_meet_at_the_postdominator(exchange: bool) -> None:
    """A rare branch that is laid out behind the loop: its threads meet the others after it."""
    shuffle = "shfl.sync.bfly.b32 %r6, %r3, 1, 31, -1;\nadd.s32 %r3, %r3, %r6;" if exchange else ""
    body = f"""
    mov.b32 %r3, 0;
    mov.b32 %r4, 0;
    $LOOP:
    add.s32 %r5, %r1, %r4;
    and.b32 %r5, %r5, 7;
    setp.eq.s32 %p1, %r5, 0;
    @%p1 bra $COLD;
    add.s32 %r3, %r3, 1;
    $JOIN:
    {shuffle}
    bar.sync 0;
    add.s32 %r4, %r4, 1;
    setp.lt.s32 %p2, %r4, 10;
    @%p2 bra $LOOP;
    {STORE}
    $COLD:
    add.s32 %r3, %r3, 5;
    bra $JOIN;
    """
    got, result = stored(body, 64)
    values = [0] * 64
    for step in range(10):
        values = [v + (5 if (k % 32 + step) % 8 == 0 else 1) for k, v in enumerate(values)]
        if exchange:
            values = [v + values[k ^ 1] for k, v in enumerate(values)]
    assert got == [v & 0xFFFFFFFF for v in values]
    lines = result.program.kernel.instructions
    counts = [
        int(count)
        for i, count in zip(lines, result.counts[:, 0], strict=False)
        if i.opcode.startswith(("shfl", "bar"))
    ]
    assert counts == [20] * (1 + exchange)  # once a step and warp: nobody does it alone


def test_a_collective_waits_for_the_lanes_that_it_names() -> None:
    """Nothing else says where the threads meet: one way might have left."""
    body = f"""
    add.s32 %r3, %r0, 100;
    setp.lt.u32 %p1, %r1, 16;
    @%p1 bra $AWAY;
    $JOIN:
    shfl.sync.idx.b32 %r6, %r3, 3, 31, -1;
    add.s32 %r3, %r3, %r6;
    {STORE}
    $AWAY:
    add.s32 %r3, %r3, 1000;
    setp.lt.s32 %p2, %r3, 0;
    @%p2 ret;
    bra $JOIN;
    """
    got, _ = stored(body, 32)
    assert got == [100 + k + 1000 * (k < 16) + 1103 for k in range(32)]


# ---- orders

# Each program and each warp takes the next ticket, and remembers which it was. The second warp of
# a program waits for the first at a barrier.
TICKETS = """
mov.u32 %r4, %ctaid.x;
and.b32 %r5, %r0, 31;
setp.eq.s32 %p1, %r5, 0;
mov.b32 %r6, 1;
@%p1 atom.global.add.u32 %r7, [%q0], %r6;
shr.u32 %r8, %r0, 5;
mad.lo.s32 %r8, %r4, WARPS, %r8;
mad.wide.s32 %q1, %r8, 4, %q0;
@%p1 st.global.b32 [%q1+4], %r7;
"""


def tickets(warps: int, programs: int, **options: object) -> list[int]:
    data = np.zeros(1 + warps * programs, np.uint32)
    body = START + TICKETS.replace("WARPS", str(warps))
    result = launch(body, [data], 32 * warps, programs, **options)
    assert not result.findings, result.findings[0]
    return data[1:].tolist()


def test_orders_of_programs_and_of_warps() -> None:
    for warps, programs in ((1, 6), (6, 1)):
        assert tickets(warps, programs) == [0, 1, 2, 3, 4, 5]
        assert tickets(warps, programs, order="backward") == [5, 4, 3, 2, 1, 0]
        ahead = [tickets(warps, programs, order="ahead", seed=s) for s in range(8)]
        firsts = {x.index(0) for x in ahead}
        assert len(firsts) > 2  # which one is ahead depends on the seed
        mixed = {tuple(tickets(warps, programs, seed=s)) for s in range(1, 20)}
        assert (0, 1, 2, 3, 4, 5) in mixed
        assert (5, 4, 3, 2, 1, 0) in mixed
        assert len(mixed) > 3
    with pytest.raises(ValueError, match="forward, backward, ahead, mixed"):
        tickets(1, 1, order="sideways")


def test_ahead_interrupts_the_other_warps() -> None:
    """Of loops of different lengths the shorter end first, though their warps began later."""
    body = f"""
    shr.u32 %r4, %r0, 5;
    sub.s32 %r5, 8, %r4;
    mul.lo.s32 %r5, %r5, 200;
    $LOOP:
    sub.s32 %r5, %r5, 1;
    setp.gt.s32 %p1, %r5, 0;
    @%p1 bra $LOOP;
    {TICKETS.replace("WARPS", "8")}
    """
    data = np.zeros(9, np.uint32)
    result = launch(START + body, [data], 256, order="ahead", seed=3)
    assert not result.findings
    others = sorted(range(8), key=lambda k: data[1 + k])[1:]
    assert others == sorted(others, reverse=True)  # those with the shortest loops first
