#pragma once
// The first step of a token's way: its row of the embedding table.

#include <cstdint>

#include "moe/base/dtype.h"

namespace moe {

/// out[i] = table[ids[i]] as float32. table [vocab, hidden] of `dtype`, out [count, hidden]. Throws
/// ValueError naming the position of an id outside of the table. Parallel over ids.
void embed(const void* table, DType dtype, int64_t vocab, int64_t hidden, const int64_t* ids,
           int64_t count, float* out);

}  // namespace moe
