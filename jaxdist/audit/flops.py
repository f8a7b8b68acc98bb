"""Multiplications and additions of a compiled step: its matrix products and convolutions."""

import math
import re

from jaxdist.audit import hlo


def flops(program: hlo.Program) -> int:
    """Floating-point operations of one step on one device.

    Matrix products and convolutions only: they are what an accelerator's peak rate is about. Loops are
    multiplied by their trips (XLA's own count has a loop's body once); of a conditional the dearest
    branch counts.
    """
    by_branch: dict[tuple[str, ...], int] = {}
    for visit in hlo.walk(program):
        one = visit.instruction
        if one.opcode == "dot":
            count = _dot(one, program)
        elif one.opcode == "convolution":
            count = _convolution(one, program)
        elif one.opcode == "custom-call":
            count = _library_call(one, program)
        else:
            continue
        key = visit.branch[:1]
        by_branch[key] = by_branch.get(key, 0) + count * visit.times
    always = by_branch.pop((), 0)
    return always + max(by_branch.values(), default=0)


def _dot(one: hlo.Instruction, program: hlo.Program) -> int:
    left = program.shapes[one.operands[0]][0].dimensions
    contracted = [int(n) for n in re.findall(r"\d+", one.attribute("lhs_contracting_dims"))]
    return 2 * math.prod(one.shapes[0].dimensions) * math.prod(left[i] for i in contracted)


def _convolution(one: hlo.Instruction, program: hlo.Program) -> int:
    labels = re.match(r"\w+_(\w+)->\w+", one.attribute("dim_labels"))
    kernel = program.shapes[one.operands[1]][0].dimensions
    taps = [
        n for label, n in zip(labels[1] if labels else "", kernel, strict=False) if label != "o"
    ]
    return 2 * math.prod(one.shapes[0].dimensions) * math.prod(taps)


def _library_call(one: hlo.Instruction, program: hlo.Program) -> int:
    """Products that XLA hands to a library: cuBLAS on GPU, oneDNN on CPU."""
    if not re.search(r'custom_call_target="[^"]*(gemm|matmul)', one.rest, re.IGNORECASE):
        return 0
    left = program.shapes[one.operands[0]][0].dimensions
    named = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', one.rest)
    contracted = [int(n) for n in re.findall(r"\d+", named[1])] if named else [len(left) - 1]
    return 2 * math.prod(one.shapes[0].dimensions) * math.prod(left[i] for i in contracted)
