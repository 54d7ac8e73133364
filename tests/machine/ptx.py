"""A parser of the PTX text that Triton generates: one kernel, its parameters and instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

SIZES = {"pred": 4, "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2}
SIZES |= {"b32": 4, "u32": 4, "s32": 4, "f32": 4, "f16x2": 4, "bf16x2": 4}
SIZES |= {"b64": 8, "u64": 8, "s64": 8, "f64": 8}


class PTXError(Exception):
    """PTX that this parser or machine does not understand. Nothing is guessed."""


@dataclass(slots=True)
class Operand:
    """``kind`` is reg, imm, vector, address, symbol or pair (two predicates, p|q)."""

    kind: str
    text: str
    name: str = ""  # of the register, symbol or base of the address
    offset: int = 0  # of the address
    parts: list[Operand] = field(default_factory=list)
    negated: bool = False


@dataclass(slots=True)
class Instruction:
    opcode: str  # in full: setp.lt.and.f32
    operands: list[Operand]
    line: int  # of the PTX text
    text: str
    source: str  # where Triton says that it comes from: fft.py:146 < onchip.py:310
    predicate: str | None = None
    negated: bool = False

    @property
    def parts(self) -> list[str]:
        return self.opcode.split(".")


@dataclass
class Parameter:
    name: str
    size: int
    pointer: bool
    offset: int  # in the parameter block


@dataclass
class Kernel:
    name: str
    target: str
    parameters: list[Parameter]
    registers: dict[str, str]
    instructions: list[Instruction]
    labels: dict[str, int]  # label -> index of an instruction
    shared: dict[str, int | None]  # bytes of a static array; None for the dynamic one
    threads: int | None  # .reqntid
    maxnreg: int | None
    text: str


REGISTER = re.compile(r"\.reg\s+\.(\w+)\s+([%\w$]+)(?:<(\d+)>)?")
PARAMETER = re.compile(r"\.param\s+((?:\.\w+(?:\s+\d+)?\s+)+)([\w$]+)")
SHARED = re.compile(r"(?:\.extern\s+)?\.shared\s+(?:\.align\s+\d+\s+)?\.b8\s+([\w$]+)\[(\d*)\]")
LOCATION = re.compile(r"\.loc\s+\d+\s+\d+\s+\d+(?:[^/]*)//\s*(.*)")
LABEL = re.compile(r"^([\w$%]+):\s*")
IGNORED = (".loc", ".file", ".section", ".pragma", ".version", ".target", ".address_size")


def split_operands(text: str) -> list[str]:
    """At commas that are in no bracket."""
    out, depth, last = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "{[(") - (c in "}])")
        if c == "," and depth == 0:
            out.append(text[last:i].strip())
            last = i + 1
    out.append(text[last:].strip())
    return [x for x in out if x]


def operand(text: str) -> Operand:
    if text.startswith("{"):
        return Operand("vector", text, parts=[operand(x) for x in split_operands(text[1:-1])])
    if text.startswith("["):
        inside = text[1:-1].strip()
        found = re.fullmatch(r"([%\w$.]+)\s*(?:\+\s*(-?\w+))?", inside)
        if not found:
            raise PTXError(f"address {text!r}")
        return Operand("address", text, name=found[1], offset=int(found[2] or "0", 0))
    if "|" in text:
        return Operand("pair", text, parts=[operand(x.strip()) for x in text.split("|")])
    if text.startswith("!"):
        inner = operand(text[1:])
        inner.negated = True
        return inner
    if text == "_" or text.startswith("%"):
        return Operand("reg", text, name=text)
    if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}|\d+)U?", text):
        return Operand("imm", text)
    if re.fullmatch(r"[\w$.]+", text):
        return Operand("symbol", text, name=text)
    raise PTXError(f"operand {text!r}")


def immediate(text: str) -> int:
    """The bits of a literal, as an integer (negative ones stay negative)."""
    sign, text = (-1, text[1:]) if text.startswith("-") else (1, text)
    text = text.removesuffix("U")
    if text[:2] in ("0f", "0F", "0d", "0D"):
        if sign < 0:
            raise PTXError("negative float literal")
        return int(text[2:], 16)
    return sign * int(text, 0)


def parse(text: str) -> Kernel:
    """The only kernel of a module."""
    lines = text.splitlines()
    target = re.search(r"^\.target\s+(\w+)", text, re.M)
    entry = re.search(r"\.entry\s+([\w$]+)\s*\((.*?)\)\s*((?:\.\w+[^\n{]*\n?)*)\s*\{", text, re.S)
    if target is None or entry is None:
        raise PTXError("no target or no entry")
    if len(re.findall(r"\.entry\b", text)) != 1 or re.search(
        r"^\s*(\.visible )?\.func\b", text, re.M
    ):
        raise PTXError("more than one kernel, or a function")

    parameters, offset = [], 0
    for attributes, name in PARAMETER.findall(entry[2]):
        words = attributes.split()
        size = SIZES[words[0][1:]]
        offset = -(-offset // size) * size
        parameters.append(Parameter(name, size, ".ptr" in words, offset))
        offset += size
    if len(parameters) != entry[2].count(".param"):
        raise PTXError(f"parameters {entry[2]!r}")
    threads = re.search(r"\.reqntid\s+(\d+)(?:\s*,\s*1\s*,\s*1)?\s*$", entry[3], re.M)
    maxnreg = re.search(r"\.maxnreg\s+(\d+)", entry[3])

    shared: dict[str, int | None] = {}
    for name, size in SHARED.findall(text):
        shared[name] = int(size) if size else None

    first = text.count("\n", 0, entry.end()) + 1  # the line after the brace
    kernel = Kernel(
        entry[1], target[1], parameters, {}, [], {}, shared,
        int(threads[1]) if threads else None, int(maxnreg[1]) if maxnreg else None, text,
    )  # fmt: skip
    depth, source = 1, ""
    for number in range(first, len(lines)):
        raw = lines[number]
        if found := LOCATION.search(raw):
            source = re.sub(r"\s*@\[\s*", " < ", found[1]).replace("]", "").strip()
        line = raw.split("//")[0].strip()
        while line and (found := LABEL.match(line)):
            kernel.labels[found[1]] = len(kernel.instructions)
            line = line[found.end() :]
        if line.startswith("{"):
            depth += 1
            line = line[1:].strip()
        closes = (line.endswith("}") and ";" in line) or line == "}"
        if closes:
            line = line[:-1].strip()
        for statement in (x.strip() for x in line.split(";")):
            if statement:
                read_statement(kernel, statement, number + 1, source)
        if closes:
            depth -= 1
            if depth == 0:
                break
    if depth:
        raise PTXError("unbalanced braces")
    return kernel


def read_statement(kernel: Kernel, statement: str, line: int, source: str) -> None:
    if statement.startswith(".reg"):
        found = REGISTER.fullmatch(statement)
        if not found:
            raise PTXError(f"line {line}: {statement!r}")
        names = [f"{found[2]}{i}" for i in range(int(found[3]))] if found[3] else [found[2]]
        for name in names:
            kind = f"b{8 * SIZES[found[1]]}" if found[1] != "pred" else "pred"
            if kernel.registers.setdefault(name, kind) != kind:
                raise PTXError(f"line {line}: {name} has two types")
        return
    if statement.startswith(IGNORED) or SHARED.fullmatch(statement):
        return
    if statement.startswith("."):
        raise PTXError(f"line {line}: directive {statement!r}")
    found = re.fullmatch(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", statement, re.S)
    if not found:
        raise PTXError(f"line {line}: {statement!r}")
    operands = [operand(x) for x in split_operands(found[4])]
    for x in operands:  # scoped names have no percent sign
        for y in [x, *x.parts]:
            if y.kind == "symbol" and y.name in kernel.registers:
                y.kind = "reg"
    kernel.instructions.append(
        Instruction(found[3], operands, line, statement, source, found[2], bool(found[1]))
    )
