"""IR text -> object code, through llvmlite.

The loop and vectorising passes stay off: the emitter has unrolled and vectorised by hand. The only
module that imports llvmlite; a machine that only serves does not need it.
"""

from __future__ import annotations

import llvmlite.binding as llvm

from tidemill.base.target import Target


def compiler_version() -> str:
    """The LLVM version that compiles, for the engine's manifest."""
    return "LLVM " + ".".join(map(str, llvm.llvm_version_info))


def compile_ir(text: str, target: Target) -> bytes:
    """Compile a module to a relocatable ELF object for `target`."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=3, reloc="pic", codemodel="small"
    )
    module = llvm.parse_assembly(text)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    options.loop_vectorization = False
    options.slp_vectorization = False
    options.loop_unrolling = False
    options.loop_interleaving = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    code: bytes = machine.emit_object(module)
    return code
