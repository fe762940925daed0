#include "buffers.h"

#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace invfast {
namespace {

struct Shelf {
  struct Buffer {
    void* data = nullptr;
    int64_t bytes = 0;
  };
  std::mutex mutex;
  Buffer kept[kKeptBuffers];
  int oldest = 0;
};

// Never destroyed: tensors may outlive every static.
Shelf& shelf() {
  static Shelf& only = *new Shelf;
  return only;
}

}  // namespace

void* take_buffer(int64_t bytes) {
  {
    const std::lock_guard lock(shelf().mutex);
    for (auto& buffer : shelf().kept)
      if (buffer.data != nullptr && buffer.bytes == bytes) return std::exchange(buffer, {}).data;
  }
  constexpr int64_t kPage = 2 << 20;
  const int64_t whole = (bytes + kPage - 1) / kPage * kPage;
  void* data = std::aligned_alloc(kPage, whole);
  if (data == nullptr) throw std::bad_alloc();
#if defined(__linux__)
  // Advice: where the kernel does not take it, pages are small and all is right but slower.
  static_cast<void>(madvise(data, whole, MADV_HUGEPAGE));
#endif
  return data;
}

void give_buffer(void* data, int64_t bytes) {
  Shelf::Buffer spare{data, bytes};
  {
    const std::lock_guard lock(shelf().mutex);
    for (auto& buffer : shelf().kept)
      if (buffer.data == nullptr) {
        buffer = spare;
        return;
      }
    // Sizes change between runs: the oldest goes.
    std::swap(shelf().kept[shelf().oldest], spare);
    shelf().oldest = (shelf().oldest + 1) % kKeptBuffers;
  }
  std::free(spare.data);
}

}  // namespace invfast
