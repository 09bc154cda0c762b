// Depthwise branches, each with its own batch norm, a few rows at a time.
//
// Plain operators write every branch's map to memory and read it again for its statistics, its norm
// and its gradients. Here a branch lives in registers: the input is read once for the statistics of
// all branches and once for the one convolution that they add up to; on the way back the branches
// are computed again where they are needed. Sums are taken in the maps' own precision over at most
// a few hundred pixels, and in double precision beyond.
//
// With y_b for a branch, m_b and v_b for mean and biased variance of its outputs,
// r_b = (v_b + eps)^(-1/2), g for the output's gradient and n for the number of outputs a channel:
//   output           sum_b gamma_b r_b (y_b - m_b) + beta_b
//   gamma_b'         r_b s_b,  s_b = sum g (y_b - m_b)
//   beta_b'          sum g
//   y_b'             gamma_b r_b (g - sum g / n - r_b^2 (s_b / n) (y_b - m_b))
// and the gradients of kernels and input are those of a convolution whose output has y_b'.

#include <cmath>
#include <memory>
#include <vector>

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

namespace {

template <typename T, int SIZE, int STRIDE>
class Unit {
  static constexpr int64_t PAD = SIZE / 2, TAPS = SIZE * SIZE;

 public:
  explicit Unit(const Arguments& a)
      : a_(a),
        num_kernels_(a.num_kernels),
        num_blocks_(divide_up(a.channels, LANES)),
        padded_(num_blocks_ * LANES),
        count_(a.batch * a.out_height * a.out_width),
        weights_(num_kernels_ * TAPS * padded_),
        centre_(padded_) {
    for (int64_t i = 0; i < num_kernels_; ++i)
      pack(static_cast<const T*>(a.kernels[i]), weights_, i, num_kernels_);
    for (int64_t row = 0; row < SIZE; ++row)
      for (int64_t column = 0; column < SIZE; ++column)
        outside_[row * SIZE + column] =
            1 - share_inside(row, a.height, a.out_height) *
                    share_inside(column, a.width, a.out_width);
  }

  void forward() {
    choose_centre();
    Buffer<T> starts(num_kernels_ * padded_);
    for (int64_t b = 0; b < num_kernels_; ++b)
      for (int64_t c = 0; c < a_.channels; ++c) starts[b * padded_ + c] = -padding_mean_of(b, c);
    const auto sums = statistics(starts);
    Buffer<T> kernel(TAPS * padded_), bias(padded_);
    merge(*sums, starts, kernel, bias);
    convolve(kernel, bias);
  }

  void backward() {
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

  // From (C, taps) to (blocks, number of kernels, taps, LANES).
  void pack(const T* kernel, T* to, int64_t index, int64_t number) const {
    for (int64_t c = 0; c < a_.channels; ++c)
      for (int64_t t = 0; t < TAPS; ++t)
        to[((c / LANES * number + index) * TAPS + t) * LANES + c % LANES] = kernel[c * TAPS + t];
  }

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

  template <typename MakeWork>
  std::unique_ptr<Sums<T>> spread(int64_t num_sums, MakeWork make_work) const {
    return ::spread<T>(a_.threads, a_.batch, a_.channels, num_sums, make_work);
  }

  Window<T, SIZE> window(const Blocks& blocks) const {
    return {as_map<const T>(a_.input), a_.height, a_.width, PAD, centre_, blocks};
  }

  // A row of the output of some blocks.
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
      return Backward(*this, negative_means, factors, sums, blocks);
    });
  }

  // The way back through the convolutions for some blocks of channels.
  class Backward {
   public:
    Backward(const Unit& unit, const T* negative_means, const T* factors, Sums<T>& sums,
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

    const Unit& unit_;
    const Arguments& a_;
    const T* const negative_means_;
    const T* const factors_;
    Sums<T>& sums_;
    const Blocks blocks_;
    const int64_t parts_, pitch_;
    Window<T, SIZE> source_;
    Buffer<T> line_, grads_, grad_row_;
  };

  const Arguments& a_;
  const int64_t num_kernels_, num_blocks_, padded_, count_;
  Buffer<T> weights_, centre_;
  // Of every tap, the share of the outputs for which it lies outside of the map.
  double outside_[TAPS];
};

template <typename T, typename Run>
int with_unit(const Arguments& a, Run run) {
  const auto is = [&a](int64_t size, int64_t stride) {
    return a.kernel_size == size && a.stride == stride;
  };
  try {
    if (is(3, 1))
      run(Unit<T, 3, 1>(a));
    else if (is(3, 2))
      run(Unit<T, 3, 2>(a));
    else if (is(5, 2))
      run(Unit<T, 5, 2>(a));
    else
      return 2;
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return 0;
}

}  // namespace

// Return 0, or 1 if memory ran out, or 2 if there is no code for the geometry.
extern "C" {

int forward_float(const Arguments* a) {
  return with_unit<float>(*a, [](auto&& unit) { unit.forward(); });
}
int forward_double(const Arguments* a) {
  return with_unit<double>(*a, [](auto&& unit) { unit.forward(); });
}
int backward_float(const Arguments* a) {
  return with_unit<float>(*a, [](auto&& unit) { unit.backward(); });
}
int backward_double(const Arguments* a) {
  return with_unit<double>(*a, [](auto&& unit) { unit.backward(); });
}
}
