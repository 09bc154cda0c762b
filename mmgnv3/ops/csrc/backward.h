// Gradients of everything that goes into the branches.

#pragma once

#include <cmath>
#include <cstring>
#include <memory>

#include "unit.h"

template <typename T, int SIZE, int STRIDE>
class Backward : Unit<T, SIZE, STRIDE> {
  using Base = Unit<T, SIZE, STRIDE>;
  using Base::a_, Base::centre_, Base::count_, Base::num_kernels_, Base::outside_, Base::padded_;
  using Base::gammas, Base::is_full, Base::kernel_of, Base::mean, Base::new_line;
  using Base::rows_of, Base::run_kernel, Base::spread, Base::variance, Base::window;
  using Base::PAD, Base::TAPS;
  using typename Base::Rows;

 public:
  explicit Backward(const Arguments& a) : Base(a) {}

  void operator()() {
    std::memcpy(centre_, a_.centre, a_.channels * sizeof(T));
    const int64_t branches = num_kernels_ + 1;
    Buffer<T> negative_means(branches * padded_);
    for (int64_t b = 0; b < branches; ++b)
      for (int64_t c = 0; c < a_.channels; ++c) negative_means[b * padded_ + c] = -mean(b, c);
    const auto sums = centred_sums(negative_means);
    Buffer<T> factors(3 * branches * padded_);
    finish_norms(*sums, factors);
    const auto grads = convolutions_backward(negative_means, factors);
    // The gradients of a kernel's outputs have a sum of zero but for rounding, and padding would
    // multiply what that left by the centre.
    for (int64_t b = 0; b < num_kernels_; ++b)
      for (int64_t c = 0; c < a_.channels; ++c)
        for (int64_t t = 0; t < TAPS; ++t)
          static_cast<T*>(a_.grad_kernels[b])[c * TAPS + t] =
              grads->total(b * TAPS + t)[c] +
              outside_[t] * centre_[c] * grads->total(num_kernels_ * TAPS + b)[c];
  }

 private:
  // Sums of the output's gradient times every centred branch (kernels, pixels), and of itself.
  std::unique_ptr<Sums<T>> centred_sums(T* negative_means) const {
    return spread(num_kernels_ + 2, [=](Sums<T>& sums, const Blocks& blocks) {
      return [=, &sums, source = window(blocks), line = new_line(blocks)](int64_t image) mutable {
        source.start(image);
        for (int64_t out_row = 0; out_row < a_.out_height; ++out_row) {
          source.reach(out_row * STRIDE + PAD);
          read_row<T>(as_map<const T>(a_.grad_output), image, out_row, a_.out_width, blocks,
                      nullptr, line, a_.out_width, 0);
          for (int64_t block = 0; block < blocks.count; ++block) {
            const int64_t channel = LANES * (blocks.first + block);
            const Rows rows = rows_of(source, out_row, block);
            const T* grad = line + block * a_.out_width * LANES;
            for (int64_t b = 0; b < num_kernels_; ++b) {
              Vec<T> sum = at(sums.part(b, channel));
              run_kernel(rows, kernel_of(blocks.first + block, b),
                         at(negative_means + b * padded_ + channel),
                         [&sum, grad](int64_t i, Vec<T> value) {
                           sum += value * at(grad + i * LANES);
                         });
              at(sums.part(b, channel)) = sum;
            }
            Vec<T> sum = at(sums.part(num_kernels_, channel));
            Vec<T> total = at(sums.part(num_kernels_ + 1, channel));
            const Vec<T> start = at(negative_means + num_kernels_ * padded_ + channel);
            for (int64_t i = 0; i < a_.out_width; ++i) {
              const Vec<T> here = at(grad + i * LANES);
              sum += here * (start + at(rows.row[PAD] + (i * STRIDE + PAD) * LANES));
              total += here;
            }
            at(sums.part(num_kernels_, channel)) = sum;
            at(sums.part(num_kernels_ + 1, channel)) = total;
          }
          if (is_full(out_row)) sums.flush(blocks);
        }
      };
    });
  }

  // Gradients of the norms' parameters and of the 1 x 1 kernel; and for every kernel, and for the
  // pixels under their centres, the gradient of its output as factors of the output's gradient and
  // of the centred value, and a constant.
  void finish_norms(Sums<T>& sums, T* factors) const {
    const double n = count_;
    for (int64_t c = 0; c < a_.channels; ++c) {
      const double total = sums.total(num_kernels_ + 1)[c];
      static_cast<T*>(a_.grad_beta)[c] = total;
      int64_t branch = 0;
      double of_grad = 0, of_value = 0;
      // Gradient with respect to ``weight`` times a value with this sum and variance.
      const auto add = [&](double weight, double sum, double variance) {
        const double r = 1 / std::sqrt(weight * weight * variance + a_.eps);
        const double gamma = gammas(branch)[c], s = weight * sum;
        static_cast<T*>(a_.grad_gammas)[branch * a_.channels + c] = r * s;
        of_grad += weight * gamma * r;
        of_value -= weight * weight * gamma * r * r * r * s / n;
        ++branch;
        return gamma * r * r * r;
      };
      const auto put = [&](int64_t index) {
        const double values[] = {of_grad, of_value, -of_grad * total / n};
        for (int64_t i = 0; i < 3; ++i) factors[(3 * index + i) * padded_ + c] = values[i];
        of_grad = of_value = 0;
      };
      for (int64_t b = 0; b < num_kernels_; ++b) {
        add(1, sums.total(b)[c], variance(b, c));
        put(b);
      }
      const double sum = sums.total(num_kernels_)[c], spread = variance(num_kernels_, c);
      if (a_.scale) {
        const double cubed = add(static_cast<const T*>(a_.scale)[c], sum, spread);
        // Exactly what is left of terms that cancel down to eps, as the norm takes out the size.
        static_cast<T*>(a_.grad_scale)[c] = cubed * sum * a_.eps;
      }
      if (a_.with_identity) add(1, sum, spread);
      put(num_kernels_);
    }
  }

  // Gradients of the kernels, and last those of their outputs, summed; of the input, written.
  std::unique_ptr<Sums<T>> convolutions_backward(T* negative_means, T* factors) const {
    return spread(num_kernels_ * (TAPS + 1), [=](Sums<T>& sums, const Blocks& blocks) {
      return Convolutions(*this, negative_means, factors, sums, blocks);
    });
  }
  // The way back through the convolutions for some blocks of channels.
  class Convolutions {
   public:
    Convolutions(const Backward& unit, const T* negative_means, const T* factors, Sums<T>& sums,
                 const Blocks& blocks)
        : unit_(unit),
          a_(unit.a_),
          negative_means_(negative_means),
          factors_(factors),
          sums_(sums),
          blocks_(blocks),
          parts_(unit.num_kernels_ + 1),
          pitch_(a_.out_width + 2 * PAD),
          source_(unit.window(blocks)),
          line_(unit.new_line(blocks)),
          grads_((SIZE + 1) * blocks.count * parts_ * pitch_ * LANES),
          grad_row_(blocks.count * a_.width * LANES) {}

    void operator()(int64_t image) {
      source_.start(image);
      int64_t next = 0;
      for (int64_t out_row = 0; out_row < a_.out_height; ++out_row) {
        source_.reach(out_row * STRIDE + PAD);
        read_row<T>(as_map<const T>(a_.grad_output), image, out_row, a_.out_width, blocks_, nullptr,
                    line_, a_.out_width, 0);
        for (int64_t block = 0; block < blocks_.count; ++block) find_grads(out_row, block);
        if (unit_.is_full(out_row)) sums_.flush(blocks_);
        if (!a_.grad_input.data) continue;
        // Rows of the input that no later output depends on.
        const bool is_last = out_row + 1 == a_.out_height;
        for (; next < a_.height && (is_last || (next + PAD) / STRIDE <= out_row); ++next) {
          for (int64_t block = 0; block < blocks_.count; ++block) gather(next, block);
          write_row<T>(grad_row_, as_map<T>(a_.grad_input), image, next, a_.width, blocks_);
        }
      }
    }

   private:
    // The gradients of a row of a kernel's outputs, or last of the pixels under their centres;
    // zeros outside of the map, and ``PAD`` of them at both ends.
    T* grads(int64_t out_row, int64_t block, int64_t index) {
      const int64_t slot = out_row < 0 || out_row >= a_.out_height ? SIZE : out_row % SIZE;
      return grads_ + ((slot * blocks_.count + block) * parts_ + index) * pitch_ * LANES;
    }

    void find_grads(int64_t out_row, int64_t block) {
      const int64_t channel = LANES * (blocks_.first + block);
      const Rows rows = unit_.rows_of(source_, out_row, block);
      const T* from = line_ + block * a_.out_width * LANES;
      for (int64_t b = 0; b < parts_; ++b) {
        T* to = grads(out_row, block, b) + PAD * LANES;
        const T* own = factors_ + 3 * b * unit_.padded_ + channel;
        const Vec<T> of_grad = at(own), of_value = at(own + unit_.padded_);
        const Vec<T> constant = at(own + 2 * unit_.padded_);
        const auto put = [=](int64_t i, Vec<T> value) {
          at(to + i * LANES) = of_grad * at(from + i * LANES) + (of_value * value + constant);
        };
        const Vec<T> start = at(negative_means_ + b * unit_.padded_ + channel);
        if (b == unit_.num_kernels_) {
          for (int64_t i = 0; i < a_.out_width; ++i)
            put(i, start + at(rows.row[PAD] + (i * STRIDE + PAD) * LANES));
          continue;
        }
        unit_.run_kernel(rows, unit_.kernel_of(blocks_.first + block, b), start, put);
        Vec<T> sum[TAPS];
        for (int t = 0; t < TAPS; ++t) sum[t] = at(sums_.part(b * TAPS + t, channel));
        Vec<T> total = at(sums_.part(unit_.num_kernels_ * TAPS + b, channel));
        for (int64_t i = 0; i < a_.out_width; ++i) {
          const Vec<T> grad = at(to + i * LANES);
          total += grad;
          for (int r = 0; r < SIZE; ++r)
            for (int c = 0; c < SIZE; ++c)
              sum[r * SIZE + c] += grad * at(rows.row[r] + (i * STRIDE + c) * LANES);
        }
        for (int t = 0; t < TAPS; ++t) at(sums_.part(b * TAPS + t, channel)) = sum[t];
        at(sums_.part(unit_.num_kernels_ * TAPS + b, channel)) = total;
      }
    }

    // The gradient of a row of the input.
    void gather(int64_t row, int64_t block) {
      T* to = grad_row_ + block * a_.width * LANES;
      if (row % STRIDE == 0) {
        const T* from = grads(row / STRIDE, block, unit_.num_kernels_) + PAD * LANES;
        for (int64_t i = 0; i < a_.width; ++i)
          at(to + i * LANES) = i % STRIDE ? Vec<T>{} : at(from + i / STRIDE * LANES);
      } else {
        std::memset(to, 0, a_.width * LANES * sizeof(T));
      }
      for (int64_t b = 0; b < unit_.num_kernels_; ++b) {
        if constexpr (STRIDE == 1) {
          gather_taps<0, 0>(row, block, b, to);
        } else if ((row + PAD) % 2 == 0) {
          gather_taps<0, 0>(row, block, b, to);
          gather_taps<0, 1>(row, block, b, to);
        } else {
          gather_taps<1, 0>(row, block, b, to);
          gather_taps<1, 1>(row, block, b, to);
        }
      }
    }

    // Adds what comes through every ``STRIDE``-th row and column of a kernel, from these on.
    template <int ROW, int COLUMN>
    void gather_taps(int64_t row, int64_t block, int64_t b, T* to) {
      const T* weights = unit_.kernel_of(blocks_.first + block, b);
      Vec<T> w[TAPS];
      const T* from[SIZE];
      for (int r = ROW; r < SIZE; r += STRIDE) {
        // Exact but for its sign, which says that there is no such row.
        from[r] = grads(row + PAD < r ? -1 : (row + PAD - r) / STRIDE, block, b);
        for (int c = COLUMN; c < SIZE; c += STRIDE)
          w[r * SIZE + c] = at(weights + (r * SIZE + c) * LANES);
      }
      constexpr int64_t first = (COLUMN + PAD * (STRIDE - 1)) % STRIDE;
      for (int64_t i = first; i < a_.width; i += STRIDE) {
        Vec<T> sum = at(to + i * LANES);
        for (int r = ROW; r < SIZE; r += STRIDE)
          for (int c = COLUMN; c < SIZE; c += STRIDE)
            sum += w[r * SIZE + c] * at(from[r] + ((i + PAD - c) / STRIDE + PAD) * LANES);
        at(to + i * LANES) = sum;
      }
    }

    const Backward& unit_;
    const Arguments& a_;
    const T* const negative_means_;
    const T* const factors_;
    Sums<T>& sums_;
    const Blocks blocks_;
    const int64_t parts_, pitch_;
    Window<T, SIZE> source_;
    Buffer<T> line_, grads_, grad_row_;
  };
};
