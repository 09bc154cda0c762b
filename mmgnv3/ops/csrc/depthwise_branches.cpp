// Depthwise branches, each with its own batch norm, a few rows at a time.
//
// Plain operators write every branch's map to memory and read it again for its statistics, its norm
// and its gradients. Here a branch lives in registers: the input is read once for the statistics of
// all branches and once for the one convolution that they add up to; on the way back the branches
// are computed again where they are needed. Sums are taken in the maps' own precision over a few
// hundred pixels or one row, and in double precision beyond.
//
// With y_b for a branch, m_b and v_b for mean and biased variance of its outputs,
// r_b = (v_b + eps)^(-1/2), g for the output's gradient and n for the number of outputs a channel:
//   output           sum_b gamma_b r_b (y_b - m_b) + beta_b
//   gamma_b'         r_b s_b,  s_b = sum g (y_b - m_b)
//   beta_b'          sum g
//   y_b'             gamma_b r_b (g - sum g / n - r_b^2 (s_b / n) (y_b - m_b))
// and the gradients of kernels and input are those of a convolution whose output has y_b'.

#include <new>

#include "backward.h"
#include "forward.h"

namespace {

template <template <typename, int, int> class Pass, typename T>
int run(const Arguments& a) {
  const auto is = [&a](int64_t size, int64_t stride) {
    return a.kernel_size == size && a.stride == stride;
  };
  try {
    if (is(3, 1))
      Pass<T, 3, 1>{a}();
    else if (is(3, 2))
      Pass<T, 3, 2>{a}();
    else if (is(5, 2))
      Pass<T, 5, 2>{a}();
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

int forward_float(const Arguments* a) { return run<Forward, float>(*a); }
int forward_double(const Arguments* a) { return run<Forward, double>(*a); }
int backward_float(const Arguments* a) { return run<Backward, float>(*a); }
int backward_double(const Arguments* a) { return run<Backward, double>(*a); }
}
