// Attention of an instruction set (see table.cpp).

#include "moe/kernels/isa/attention.h"
#include "moe/kernels/isa/cache_rows.h"
#include "moe/kernels/isa/index_scores.h"
#ifdef __AMX_TILE__
#include "moe/kernels/isa/attention_tiles.h"
#include "moe/kernels/isa/index_tiles.h"
#endif

namespace moe::MOE_ISA {

extern const AttentionKernels kAttentionTable;
constinit const AttentionKernels kAttentionTable = {
#ifdef __AMX_TILE__
    // Two parts of a float16 number cost more than they bring to a few rows (measured).
    {{&pack_queries, &attend<float>},
     {&pack_few_queries, &attend_tiles<FewPairTiles>},
     {&pack_queries, &attend<f16>},
     {&pack_query_bytes, &attend_tiles<ByteTiles>}},
    {{&pack_queries, &attend<float>},
     {&pack_query_tiles, &attend_tiles<PairTiles<bf16>>},
     {&pack_query_tiles, &attend_tiles<PairTiles<f16>>},
     {&pack_query_bytes, &attend_tiles<ByteTiles>}},
#else
    {{&pack_queries, &attend<float>},
     {&pack_queries, &attend<bf16>},
     {&pack_queries, &attend<f16>},
     {&pack_queries, &attend<int8_t>}},
    {{&pack_queries, &attend<float>},
     {&pack_queries, &attend<bf16>},
     {&pack_queries, &attend<f16>},
     {&pack_queries, &attend<int8_t>}},
#endif
    &merge,
    &finish,
#ifdef __AMX_TILE__
    {{&pack_queries, &index_scores<float>},
     {&pack_query_tiles, &index_tiles<bf16>},
     {&pack_query_tiles, &index_tiles<f16>}},
#else
    {{&pack_queries, &index_scores<float>},
     {&pack_queries, &index_scores<bf16>},
     {&pack_queries, &index_scores<f16>}},
#endif
    {&keep_f32, &keep_half<bf16>, &keep_half<f16>, &keep_int8}};

}  // namespace moe::MOE_ISA
