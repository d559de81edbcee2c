// Attention of an instruction set (see table.cpp).

#include "moe/kernels/isa/attention.h"
#include "moe/kernels/isa/cache_rows.h"
#include "moe/kernels/isa/index_scores.h"

namespace moe::MOE_ISA {

extern const AttentionKernels kAttentionTable;
constinit const AttentionKernels kAttentionTable = kAttentionKernels;

}  // namespace moe::MOE_ISA
