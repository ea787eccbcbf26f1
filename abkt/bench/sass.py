"""What the CUDA assembler made of a Triton kernel, read with the disassembler of Triton's package. No GPU is needed."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Instruction:
    """at: its address. name: the operation with its modifiers, without a predicate. target: where a branch goes, or None."""

    at: int
    name: str
    target: int | None


@dataclass(frozen=True, slots=True)
class Loop:
    """The instructions from first to last, both addresses included."""

    first: int
    last: int

    def holds(self, at: int) -> bool:
        return self.first <= at <= self.last


@dataclass(frozen=True, slots=True)
class MachineCode:
    """A compiled kernel. registers, stack: of a thread, the stack in bytes. shared: bytes of a block. code: up to the last exit; division's
    rare path, which lies behind it, is left out."""

    registers: int
    stack: int
    shared: int
    warps: int
    fused: int
    code: tuple[Instruction, ...]

    @property
    def loops(self) -> tuple[Loop, ...]:
        """From the outermost to the innermost, and from the first to the last."""
        back = [Loop(i.target, i.at) for i in self.code if i.target is not None and i.target < i.at]
        return tuple(sorted(back, key=lambda loop: (loop.first, -loop.last)))

    def inner_loops(self) -> tuple[Loop, ...]:
        """Loops that hold no other."""
        return tuple(a for a in self.loops if not any(a != b and a.holds(b.first) and a.holds(b.last) for b in self.loops))

    def skipped_with(self, loop: Loop) -> Loop:
        """What the nearest branch skips that skips this loop; the loop alone if there is none."""
        over = [i for i in self.code if i.target is not None and i.at < loop.first and i.target > loop.last]
        inside = [i.at for i in self.code if over and over[-1].at < i.at < (over[-1].target or 0)]
        return Loop(inside[0], inside[-1]) if inside else loop

    def within(self, loop: Loop) -> list[Instruction]:
        return [i for i in self.code if loop.holds(i.at)]

    def count(self, pattern: str, within: Loop | None = None) -> int:
        """Instructions whose name matches from its start on."""
        return sum(re.match(pattern, i.name) is not None for i in (self.within(within) if within else self.code))

    def blocks_per_multiprocessor(self) -> int:
        """Blocks that a multiprocessor of compute capability 8.0, 9.0 or 10.0 holds at once: 65,536 registers, given to a warp in units of
        256; 2,048 threads; 32 blocks. Shared memory is counted as 160 KiB, of which a block takes 1 KiB more than it asks for."""
        of_warp = -(-self.registers * 32 // 256) * 256
        return min(65_536 // (of_warp * self.warps), 2_048 // (32 * self.warps), 32, 160 * 1024 // (self.shared + 1024))

    def widest(self, kind: str) -> int:
        """Bytes of the widest load (LDG) or store (STG) of global memory by one thread."""
        widths = {"128": 16, "64": 8, "U16": 2, "U8": 1, "S8": 1, "S16": 2}
        found = [i.name.split(".") for i in self.code if i.name.startswith(kind)]
        return max((next((widths[part] for part in parts if part in widths), 4) for parts in found), default=0)


def parsed(code: str) -> tuple[Instruction, ...]:
    """The instructions of a disassembly up to the last exit, without padding."""
    found = []
    for at, text in re.findall(r"/\*([0-9a-f]{4,6})\*/\s+(.*?)\s*;", code):
        name = re.sub(r"^@!?U?P\w+\s+", "", text)
        to = re.search(r"\b0x([0-9a-f]+)\s*$", name) if name.startswith("BRA") else None
        found.append(Instruction(int(at, 16), name.split()[0], int(to[1], 16) if to else None))
    exits = [index for index, instruction in enumerate(found) if instruction.name == "EXIT"]
    kept = found[: exits[-1] + 1] if exits else found
    kept += [i for i in found[len(kept) : len(kept) + 2] if i.target is not None and i.target < i.at]  # the branch back of an outer loop
    return tuple(i for i in kept if i.name != "NOP")


def disassembled(binary: bytes) -> tuple[str, str]:
    """Resource usage and machine code of a cubin, as text."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage, code = (
            subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True).stdout for flag in ("-res-usage", "-sass")
        )
    return usage, code


def compiled(
    kernel: Any, architecture: int, types: Mapping[str, str], constants: Mapping[str, Any], options: Mapping[str, Any]
) -> MachineCode:
    """Compile a kernel ahead of time, with all pointers aligned to 16 bytes.

    types: types of the arguments by name; the others are i32. constants: values of compile-time arguments; those that the kernel lacks are
    left out.
    """
    from triton import compile
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    given = {n: value for n, value in constants.items() if n in kernel.arg_names}
    signature = {n: "constexpr" if n in given else types.get(n, "i32") for n in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if signature[n].startswith("*")}
    source = ASTSource(kernel, signature=signature, constexprs=given, attrs=aligned)
    made = compile(source, target=GPUTarget("cuda", architecture, 32), options=dict(options))
    usage, code = disassembled(made.asm["cubin"])

    def used(name: str) -> int:
        found = re.search(rf"\b{name}:(\d+)", usage)
        return int(found[1]) if found else 0

    fused = len(re.findall(r"\bfma\.rn\.f32\b", made.asm["ptx"]))
    return MachineCode(used("REG"), used("STACK"), int(made.metadata.shared), int(made.metadata.num_warps), fused, parsed(code))
