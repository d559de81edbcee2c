// Compiled once per instruction set, into its own namespace (see cmake/isas.cmake).

#include "moe/kernels/table.h"
#include "moe/kernels/isa/attention.h"
#include "moe/kernels/isa/cache_rows.h"
#include "moe/kernels/isa/convert.h"
#include "moe/kernels/isa/gemm.h"
#include "moe/kernels/isa/index_scores.h"
#include "moe/kernels/isa/norm.h"
#include "moe/kernels/isa/probe.h"
#include "moe/kernels/isa/recurrence.h"
#include "moe/kernels/isa/rope.h"
#include "moe/kernels/isa/router.h"
#include "moe/kernels/isa/rowwise.h"
#include "moe/kernels/isa/sample.h"
#ifdef __AMX_TILE__
#include "moe/kernels/isa/gemm_amx.h"
#endif

#define MOE_STRING_OF(x) #x
#define MOE_STRING(x) MOE_STRING_OF(x)

namespace moe::MOE_ISA {

#ifdef __AMX_TILE__
static constexpr const GemmKernels* kGemm = &kTileKernels;
#else
static constexpr const GemmKernels* kGemm = &kGemmKernels;
#endif

extern const KernelTable kTable;
constinit const KernelTable kTable = {MOE_STRING(MOE_ISA), kGemm,           &kConvertKernels,
                                      &kRowwiseKernels,    &kRouterKernels, &kNormKernels,
                                      &kRopeKernels,       &kSampleKernels, &kAttentionKernels,
                                      &kRecurrenceKernels, &kProbeKernels};

}  // namespace moe::MOE_ISA
