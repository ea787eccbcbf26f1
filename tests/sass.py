"""What ptxas made of a kernel, read with the cuobjdump of Triton's package; for checks that run where there is no GPU."""

import re
import subprocess
import tempfile
from pathlib import Path


def disassembled(triton, binary: bytes) -> tuple[str, str]:
    """Resource usage and machine code of a cubin, as text."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage, code = (
            subprocess.run([tool, flag, file.name], capture_output=True, text=True, check=True).stdout for flag in ("-res-usage", "-sass")
        )
    return usage, code


def counts(triton, binary: bytes) -> dict[str, int]:
    """Registers and stack bytes a thread, instructions on local memory (spills), loads and stores of 16 bytes."""
    usage, code = disassembled(triton, binary)
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "local": len(re.findall(r"\b(?:LDL|STL)\b", code)),
        "wide_loads": len(re.findall(r"\bLDG\.E\.128\b", code)),
        "wide_stores": len(re.findall(r"\bSTG\.E\.128\b", code)),
    }
