// Compiled once per instruction set, into its own namespace (see cmake/isas.cmake). The two tables
// that take longest to compile are files of their own.

#include "moe/kernels/table.h"
#include "moe/kernels/isa/convert.h"
#include "moe/kernels/isa/norm.h"
#include "moe/kernels/isa/probe.h"
#include "moe/kernels/isa/recurrence.h"
#include "moe/kernels/isa/rope.h"
#include "moe/kernels/isa/router.h"
#include "moe/kernels/isa/rowwise.h"
#include "moe/kernels/isa/sample.h"

#define MOE_STRING_OF(x) #x
#define MOE_STRING(x) MOE_STRING_OF(x)

namespace moe::MOE_ISA {

extern const GemmKernels kGemmTable;            // gemm.cpp
extern const AttentionKernels kAttentionTable;  // attention.cpp

extern const KernelTable kTable;
constinit const KernelTable kTable = {MOE_STRING(MOE_ISA), &kGemmTable,     &kConvertKernels,
                                      &kRowwiseKernels,    &kRouterKernels, &kNormKernels,
                                      &kRopeKernels,       &kSampleKernels, &kAttentionTable,
                                      &kRecurrenceKernels, &kProbeKernels};

}  // namespace moe::MOE_ISA
