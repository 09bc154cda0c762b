// What both passes over a unit have in common: its kernels, its rows, running a kernel over a row.

#pragma once

#include <cstdint>
#include <memory>

#include "rows.h"
#include "sums.h"

// What Python hands over; see mmgnv3/models/layers/depthwise_fused.py.
struct Arguments {
  int64_t batch, channels, height, width, out_height, out_width;
  int64_t kernel_size, stride, num_kernels, with_identity, threads;
  double eps;
  Tensor4 input, output, grad_output, grad_input;
  // num_kernels pointers each, to (C, 1, k, k).
  void** kernels;
  void** grad_kernels;
  // Kernel of the 1 x 1 branch, (C, 1, 1, 1), and its gradient, or null.
  void* scale;
  void* grad_scale;
  // (branches, C), in the order kernels, 1 x 1 branch, identity.
  void* gammas;
  void* betas;
  void* grad_gammas;
  void* grad_beta;
  double* means;
  double* variances;
  // What the way back needs: numbers that the input is centred about, (C,), then means of the
  // kernels' outputs and of the pixels under the kernels' centres, and their variances, (N + 1, C)
  // each, all of the centred input.
  void* centre;
  double* moments;
};

template <typename T, int SIZE, int STRIDE>
class Unit {
 protected:
  static constexpr int64_t PAD = SIZE / 2, TAPS = SIZE * SIZE;

  explicit Unit(const Arguments& a)
      : a_(a),
        num_kernels_(a.num_kernels),
        padded_(divide_up(a.channels, LANES) * LANES),
        count_(a.batch * a.out_height * a.out_width),
        weights_(num_kernels_ * TAPS * padded_),
        centre_(padded_) {
    for (int64_t b = 0; b < num_kernels_; ++b)
      for (int64_t c = 0; c < a.channels; ++c)
        for (int64_t t = 0; t < TAPS; ++t)
          weights_[((c / LANES * num_kernels_ + b) * TAPS + t) * LANES + c % LANES] =
              static_cast<const T*>(a.kernels[b])[c * TAPS + t];
    for (int64_t row = 0; row < SIZE; ++row)
      for (int64_t column = 0; column < SIZE; ++column)
        outside_[row * SIZE + column] =
            1 - share_inside(row, a.height, a.out_height) *
                    share_inside(column, a.width, a.out_width);
  }

  // Means and variances of the kernels' outputs and, last, of the pixels under their centres.
  double& mean(int64_t b, int64_t c) const { return a_.moments[b * a_.channels + c]; }
  double& variance(int64_t b, int64_t c) const {
    return a_.moments[(num_kernels_ + 1 + b) * a_.channels + c];
  }
  const T* gammas(int64_t branch) const {
    return static_cast<const T*>(a_.gammas) + branch * a_.channels;
  }

  // Share of the outputs along an axis for which a tap lies on the map.
  static double share_inside(int64_t tap, int64_t size, int64_t out_size) {
    int64_t inside = 0;
    for (int64_t i = 0; i < out_size; ++i) {
      const int64_t place = i * STRIDE + tap - PAD;
      inside += place >= 0 && place < size;
    }
    return static_cast<double>(inside) / out_size;
  }

  // What padding makes of the mean of a kernel's outputs: outside of the map, the centred input is
  // the negative centre.
  template <typename Kernel>
  double padding_mean(int64_t c, Kernel kernel) const {
    double sum = 0;
    for (int64_t t = 0; t < TAPS; ++t) sum -= outside_[t] * kernel[t];
    return sum * centre_[c];
  }
  double padding_mean_of(int64_t b, int64_t c) const {
    return padding_mean(c, static_cast<const T*>(a_.kernels[b]) + c * TAPS);
  }

  template <typename MakeWork>
  std::unique_ptr<Sums<T>> spread(int64_t num_sums, MakeWork make_work) const {
    return ::spread<T>(a_.threads, a_.batch, a_.channels, num_sums, make_work);
  }

  Window<T, SIZE> window(const Blocks& blocks) const {
    return {as_map<const T>(a_.input), a_.height, a_.width, PAD, centre_, blocks};
  }

  // Room for a row of the output of some blocks.
  Buffer<T> new_line(const Blocks& blocks) const {
    return Buffer<T>(blocks.count * a_.out_width * LANES);
  }

  // Rows of the input under an output row.
  struct Rows {
    const T* row[SIZE];
  };

  Rows rows_of(Window<T, SIZE>& window, int64_t out_row, int64_t block) const {
    Rows rows;
    for (int r = 0; r < SIZE; ++r) rows.row[r] = window.row(out_row * STRIDE - PAD + r, block);
    return rows;
  }

  // Calls ``take(column, value)`` with the values of a kernel's output along a row.
  template <typename Take>
  inline void run_kernel(const Rows& rows, const T* weights, Vec<T> start, Take take) const {
    Vec<T> w[TAPS];
    for (int t = 0; t < TAPS; ++t) w[t] = at(weights + t * LANES);
    for (int64_t i = 0; i < a_.out_width; ++i) {
      Vec<T> value = start;
      for (int r = 0; r < SIZE; ++r)
        for (int c = 0; c < SIZE; ++c)
          value += w[r * SIZE + c] * at(rows.row[r] + (i * STRIDE + c) * LANES);
      take(i, value);
    }
  }

  const T* kernel_of(int64_t block, int64_t index) const {
    return weights_ + (block * num_kernels_ + index) * TAPS * LANES;
  }

  bool is_full(int64_t out_row) const {
    return (out_row + 1) % std::max<int64_t>(1, MAX_PIXELS / a_.out_width) == 0;
  }

  const Arguments& a_;
  const int64_t num_kernels_, padded_, count_;
  // Kernels, (blocks, num_kernels, taps, LANES), and what is taken off every channel.
  Buffer<T> weights_, centre_;
  // Of every tap, the share of the outputs for which it lies outside of the map.
  double outside_[TAPS];
};
