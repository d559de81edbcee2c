// The matrix products of an instruction set (see table.cpp).

#ifdef __AMX_TILE__
#include "moe/kernels/isa/gemm_amx.h"
#else
#include "moe/kernels/isa/gemm.h"
#endif

namespace moe::MOE_ISA {

extern const GemmKernels kGemmTable;
#ifdef __AMX_TILE__
constinit const GemmKernels kGemmTable = with_tiles(kGemmKernels);
#else
constinit const GemmKernels kGemmTable = kGemmKernels;
#endif

}  // namespace moe::MOE_ISA
