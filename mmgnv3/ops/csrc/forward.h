// Output and statistics of all branches.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "unit.h"

template <typename T, int SIZE, int STRIDE>
class Forward : Unit<T, SIZE, STRIDE> {
  using Base = Unit<T, SIZE, STRIDE>;
  using Base::a_, Base::centre_, Base::count_, Base::num_kernels_, Base::padded_;
  using Base::gammas, Base::is_full, Base::kernel_of, Base::mean, Base::new_line;
  using Base::padding_mean, Base::padding_mean_of, Base::rows_of, Base::run_kernel;
  using Base::spread, Base::variance, Base::window;
  using Base::PAD, Base::TAPS;
  using typename Base::Rows;

 public:
  explicit Forward(const Arguments& a) : Base(a) {}

  void operator()() {
    choose_centre();
    Buffer<T> starts(num_kernels_ * padded_);
    for (int64_t b = 0; b < num_kernels_; ++b)
      for (int64_t c = 0; c < a_.channels; ++c) starts[b * padded_ + c] = -padding_mean_of(b, c);
    const auto sums = statistics(starts);
    Buffer<T> kernel(TAPS * padded_), bias(padded_);
    merge(*sums, starts, kernel, bias);
    convolve(kernel, bias);
  }

 private:
  // A number near the mean of every channel: a large mean would take digits from sums.
  void choose_centre() {
    const auto input = as_map<const T>(a_.input);
    const int64_t images = std::min<int64_t>(a_.batch, 16);
    for (int64_t image = 0; image < images; ++image)
      for (int64_t place = 0; place < 4; ++place) {
        const int64_t row = a_.height * (1 + 2 * (place / 2)) / 4;
        const int64_t column = a_.width * (1 + 2 * (place % 2)) / 4;
        const T* from = input.data + image * input.image + row * input.row + column * input.column;
        for (int64_t c = 0; c < a_.channels; ++c)
          centre_[c] += from[c * input.channel] / (4 * images);
      }
    // What is not finite is to end in the output, as it would without a centre.
    for (int64_t c = 0; c < a_.channels; ++c)
      if (!std::isfinite(centre_[c])) centre_[c] = 0;
    std::memcpy(a_.centre, centre_, a_.channels * sizeof(T));
  }

  // Sums of values and of squares of the kernels' outputs, with ``starts`` added to them, and of
  // the pixels under their centres.
  std::unique_ptr<Sums<T>> statistics(const T* starts) const {
    return spread(2 * (num_kernels_ + 1), [=](Sums<T>& sums, const Blocks& blocks) {
      return [=, &sums, source = window(blocks)](int64_t image) mutable {
        source.start(image);
        for (int64_t out_row = 0; out_row < a_.out_height; ++out_row) {
          source.reach(out_row * STRIDE + PAD);
          for (int64_t block = 0; block < blocks.count; ++block) {
            const int64_t channel = LANES * (blocks.first + block);
            const Rows rows = rows_of(source, out_row, block);
            for (int64_t b = 0; b <= num_kernels_; ++b) {
              Vec<T> sum = at(sums.part(2 * b, channel));
              Vec<T> squares = at(sums.part(2 * b + 1, channel));
              const auto add = [&](int64_t, Vec<T> value) {
                sum += value;
                squares += value * value;
              };
              if (b < num_kernels_)
                run_kernel(rows, kernel_of(blocks.first + block, b),
                           at(starts + b * padded_ + channel), add);
              else
                for (int64_t i = 0; i < a_.out_width; ++i)
                  add(i, at(rows.row[PAD] + (i * STRIDE + PAD) * LANES));
              at(sums.part(2 * b, channel)) = sum;
              at(sums.part(2 * b + 1, channel)) = squares;
            }
          }
          if (is_full(out_row)) sums.flush(blocks);
        }
      };
    });
  }

  // Keeps the moments, and merges all branches into one kernel for the centred input and a bias.
  void merge(Sums<T>& sums, const T* starts, T* kernel, T* bias) {
    for (int64_t b = 0; b <= num_kernels_; ++b)
      for (int64_t c = 0; c < a_.channels; ++c) {
        const double shifted = sums.total(2 * b)[c] / count_;
        mean(b, c) = b < num_kernels_ ? shifted - starts[b * padded_ + c] : shifted;
        variance(b, c) = sums.total(2 * b + 1)[c] / count_ - shifted * shifted;
        // Not std::max, which would take a number for one that is none.
        if (variance(b, c) < 0) variance(b, c) = 0;
      }
    std::vector<double> merged(TAPS);
    for (int64_t c = 0; c < a_.channels; ++c) {
      std::fill(merged.begin(), merged.end(), 0.0);
      double offset = 0;
      int64_t branch = 0;
      // ``padding`` is the part of the mean that the merged kernel is to take care of.
      const auto add = [&](double centred_mean, double padding, double variance, double shift) {
        const double factor = gammas(branch)[c] / std::sqrt(variance + a_.eps);
        offset += static_cast<const T*>(a_.betas)[branch * a_.channels + c];
        offset -= factor * (centred_mean - padding);
        a_.means[branch * a_.channels + c] = centred_mean + shift;
        a_.variances[branch * a_.channels + c] = variance;
        ++branch;
        return factor;
      };
      for (int64_t b = 0; b < num_kernels_; ++b) {
        const T* own = static_cast<const T*>(a_.kernels[b]) + c * TAPS;
        double total = 0;
        for (int64_t t = 0; t < TAPS; ++t) total += own[t];
        const double factor =
            add(mean(b, c), padding_mean_of(b, c), variance(b, c), total * centre_[c]);
        for (int64_t t = 0; t < TAPS; ++t) merged[t] += factor * own[t];
      }
      const double pixel = mean(num_kernels_, c), spread = variance(num_kernels_, c);
      if (a_.scale) {
        const double weight = static_cast<const T*>(a_.scale)[c];
        merged[TAPS / 2] += weight * add(weight * pixel, 0, weight * weight * spread,
                                         weight * centre_[c]);
      }
      if (a_.with_identity) merged[TAPS / 2] += add(pixel, 0, spread, centre_[c]);
      T* to = kernel + (c / LANES * TAPS) * LANES + c % LANES;
      for (int64_t t = 0; t < TAPS; ++t) merged[t] = to[t * LANES] = merged[t];
      // Of the kernel as it is used, or what is rounded off it would shift the mean.
      bias[c] = offset - padding_mean(c, merged);
    }
  }

  void convolve(T* kernel, T* bias) const {
    spread(0, [=](Sums<T>&, const Blocks& blocks) {
      return [=, source = window(blocks), line = new_line(blocks)](int64_t image) mutable {
        source.start(image);
        for (int64_t out_row = 0; out_row < a_.out_height; ++out_row) {
          source.reach(out_row * STRIDE + PAD);
          for (int64_t block = 0; block < blocks.count; ++block) {
            T* out = line + block * a_.out_width * LANES;
            const int64_t index = blocks.first + block;
            run_kernel(rows_of(source, out_row, block), kernel + index * TAPS * LANES,
                       at(bias + index * LANES),
                       [out](int64_t i, Vec<T> value) { at(out + i * LANES) = value; });
          }
          write_row<T>(line, as_map<T>(a_.output), image, out_row, a_.out_width, blocks);
        }
      };
    });
  }
};
