// Memory for large results on a CPU. The system takes back a large block as soon as it is freed and hands out the next one
// zeroed, page by page: on two Zen 3 cores that took longer than the combination of 64 MiB itself. A loop that makes
// such a result in every step reuses two of them instead.
#pragma once

#include <cstdint>

namespace invfast {

constexpr int64_t kLargeBuffer = 32 << 20;  // bytes; below, malloc keeps its own
constexpr int kKeptBuffers = 2;             // idle ones kept for the next call, at most

// `bytes` of memory aligned to a large page. Throws std::bad_alloc.
void* take_buffer(int64_t bytes);

// Back from its user; `bytes` is what was asked for.
void give_buffer(void* data, int64_t bytes);

}  // namespace invfast
