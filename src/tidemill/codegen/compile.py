"""Modules -> code images, through llvmlite.

The loop and vectorising passes stay off: the emitter has unrolled and vectorised by hand. The only
module that imports llvmlite; a machine that only serves does not need it.
"""

from __future__ import annotations

import llvmlite.binding as llvm

from tidemill.base.debug import Level, say
from tidemill.base.target import Target
from tidemill.codegen.isa import Isa
from tidemill.codegen.link import CodeImage, link_object
from tidemill.codegen.module import Module


def compiler_version() -> str:
    """The LLVM version that compiles, for the engine's manifest."""
    return "LLVM " + ".".join(map(str, llvm.llvm_version_info))


def compile_module(module: Module, isa: Isa) -> CodeImage:
    """Compile a module for the CPU of an instruction set, and link it."""
    text = module.text(isa)
    say(Level.CODE, "codegen", text)
    return link_object(emit_object(text, isa.target))


def emit_object(text: str, target: Target) -> bytes:
    """Compile LLVM IR to an object file; equal text and target give equal bytes."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, reloc="pic", codemodel="small"
    )
    parsed = llvm.parse_assembly(text)
    parsed.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = False
    options.slp_vectorization = False
    options.loop_unrolling = False
    options.loop_interleaving = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(parsed, passes)
    emitted: bytes = machine.emit_object(parsed)
    return emitted
