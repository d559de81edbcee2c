#pragma once
// Every format's struct.

#include "moe/quant/floats.h"
#include "moe/quant/format.h"
#include "moe/quant/fp8.h"
#include "moe/quant/ggml_iq.h"
#include "moe/quant/ggml_k.h"
#include "moe/quant/ggml_simple.h"
#include "moe/quant/ggml_ternary.h"
#include "moe/quant/int8.h"
#include "moe/quant/integers.h"
