# THE list of instruction sets. A row compiles kernels/isa/*.cpp into namespace moe::<name> with the
# given flags; dispatch, tests and benchmarks expand the generated list, so a new instruction set
# is one row here, one header in simd/ and (for its own fast paths) an overload in kernels/isa/.
#
# Worst first: dispatch takes the last row that the processor and the operating system can run.
# Every row names the moe::CpuFeature bits it needs (base/cpu.h).

set(MOE_ISA_ROWS "")
set(MOE_ISA_OBJECTS "")

function(moe_isa name processor features)
  if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "${processor}")
    return()
  endif()
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/csrc/moe/kernels/isa/*.cpp)
  add_library(moe_isa_${name} OBJECT ${sources})
  target_compile_definitions(moe_isa_${name} PRIVATE MOE_ISA=${name} MOE_ISA_${name}=1)
  # No exceptions: their tables are symbols that objects share. The warnings switched off are g++ 12's
  # about its own intrinsics headers.
  target_compile_options(moe_isa_${name} PRIVATE ${ARGN} -fno-exceptions -Wno-uninitialized
                         -Wno-maybe-uninitialized)
  target_link_libraries(moe_isa_${name} PRIVATE moe_flags)
  set(MOE_ISA_ROWS "${MOE_ISA_ROWS}MOE_ISA_ROW(${name}, ${features})\n" PARENT_SCOPE)
  set(MOE_ISA_OBJECTS "${MOE_ISA_OBJECTS};moe_isa_${name}" PARENT_SCOPE)
endfunction()

set(x86 "x86_64|AMD64|amd64")
set(avx2_flags -mavx2 -mfma -mf16c -mbmi -mbmi2 -mlzcnt)
set(avx512_flags ${avx2_flags} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)

moe_isa(scalar ".*" 0)
moe_isa(avx2 ${x86} "kAvx2" ${avx2_flags})
moe_isa(avx2vnni ${x86} "kAvx2 | kAvxVnni" ${avx2_flags} -mavxvnni)
moe_isa(avx512 ${x86} "kAvx2 | kAvx512" ${avx512_flags})
moe_isa(avx512vnni ${x86} "kAvx2 | kAvx512 | kAvx512Vnni" ${avx512_flags} -mavx512vnni)
moe_isa(avx512bf16 ${x86} "kAvx2 | kAvx512 | kAvx512Vnni | kAvx512Bf16" ${avx512_flags} -mavx512vnni
        -mavx512bf16)
moe_isa(avx512amx ${x86}
        "kAvx2 | kAvx512 | kAvx512Vnni | kAvx512Bf16 | kAvx512Vbmi | kGfni | kAmx" ${avx512_flags}
        -mavx512vnni -mavx512bf16 -mavx512vbmi -mgfni -mamx-tile -mamx-int8 -mamx-bf16)

file(CONFIGURE OUTPUT ${PROJECT_BINARY_DIR}/generated/moe_isas.inc CONTENT "@MOE_ISA_ROWS@" @ONLY)
