#pragma once
// Every format's struct.

#include "moe/quant/floats.h"
#include "moe/quant/format.h"
#include "moe/quant/groups.h"
#include "moe/quant/int8.h"
