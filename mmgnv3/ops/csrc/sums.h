// Work on a batch that is spread over threads, and what it sums.

#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "rows.h"

// So many outputs are summed in the maps' own precision, or those of one row if they are more.
constexpr int64_t MAX_PIXELS = 256;

// Sums of every channel: short ones in T, long ones in double precision.
template <typename T>
class Sums {
 public:
  Sums(int64_t count, int64_t channels)
      : count_(count),
        padded_(divide_up(channels, LANES) * LANES),
        part_(count * padded_),
        total_(count * padded_) {}

  // What has been summed since the last flush, for a channel and those after it.
  T* part(int64_t index, int64_t channel) { return part_ + index * padded_ + channel; }
  // What has been summed before, (channels,).
  double* total(int64_t index) { return total_ + index * padded_; }

  void flush(const Blocks& blocks) {
    const int64_t first = LANES * blocks.first, last = first + LANES * blocks.count;
    for (int64_t index = 0; index < count_; ++index)
      for (int64_t i = index * padded_ + first; i < index * padded_ + last; ++i) {
        total_[i] += part_[i];
        part_[i] = 0;
      }
  }

  void add(Sums& other) {
    for (int64_t i = 0; i < count_ * padded_; ++i) total_[i] += other.total_[i];
  }

 private:
  const int64_t count_, padded_;
  Buffer<T> part_;
  Buffer<double> total_;
};

// Runs ``make_work(sums, blocks)(image)`` for all channels and images of a batch, and adds up what
// the threads summed. The order of the sums depends on nothing but the number of threads.
template <typename T, typename MakeWork>
std::unique_ptr<Sums<T>> spread(int64_t threads, int64_t batch, int64_t channels, int64_t num_sums,
                                MakeWork make_work) {
  const int64_t num_blocks = divide_up(channels, LANES);
  // Whole images if all threads get as many, else parts of their channels.
  const int64_t groups = batch % threads ? std::min(num_blocks, 2 * threads) : 1;
  std::vector<std::unique_ptr<Sums<T>>> sums(threads);
  // No exception may leave a parallel loop.
  bool has_memory = true;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t thread = 0; thread < threads; ++thread) try {
    sums[thread] = std::make_unique<Sums<T>>(num_sums, channels);
    const int64_t begin = groups * batch * thread / threads;
    const int64_t end = groups * batch * (thread + 1) / threads;
    for (int64_t group = begin / batch; group * batch < end; ++group) {
      const int64_t first = group * num_blocks / groups;
      const int64_t last = (group + 1) * num_blocks / groups;
      const Blocks blocks{first, last - first, channels};
      auto work = make_work(*sums[thread], blocks);
      const int64_t last_image = std::min(end - group * batch, batch);
      for (int64_t i = std::max<int64_t>(begin - group * batch, 0); i < last_image; ++i) {
        work(i);
        sums[thread]->flush(blocks);
      }
    }
  } catch (const std::bad_alloc&) {
#pragma omp atomic write
    has_memory = false;
  }
  if (!has_memory) throw std::bad_alloc();
  for (int64_t thread = 1; thread < threads; ++thread) sums[0]->add(*sums[thread]);
  return std::move(sums[0]);
}
