// Rows of maps as a kernel wants them: in blocks of channels, centred, with their padding.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <type_traits>

// As many channels as one register of the processor holds in single precision: what is wider goes
// through memory.
#if defined(__AVX512F__)
constexpr int64_t LANES = 16;
#elif defined(__AVX__)
constexpr int64_t LANES = 8;
#else
constexpr int64_t LANES = 4;
#endif

template <typename T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float type __attribute__((vector_size(LANES * sizeof(float)), may_alias));
};
template <>
struct Lanes<double> {
  typedef double type __attribute__((vector_size(LANES * sizeof(double)), may_alias));
};
template <typename T>
using Vec = typename Lanes<T>::type;

template <typename T>
inline Vec<T>& at(T* place) {
  return *reinterpret_cast<Vec<T>*>(place);
}
template <typename T>
inline const Vec<T>& at(const T* place) {
  return *reinterpret_cast<const Vec<T>*>(place);
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory that begins as zeros, aligned for Vec.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t size) {
    const size_t bytes = divide_up(std::max<int64_t>(size, 1) * sizeof(T), 128) * 128;
    data_ = static_cast<T*>(std::aligned_alloc(128, bytes));
    if (!data_) throw std::bad_alloc();
    std::memset(data_, 0, bytes);
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  operator T*() { return data_; }
  operator const T*() const { return data_; }

 private:
  T* data_;
};

// A tensor (B, C, H, W) in any memory format; strides count elements.
template <typename T>
struct Map {
  T* data;
  int64_t image, channel, row, column;
};

// The same as Python hands it over.
struct Tensor4 {
  void* data;
  int64_t image, channel, row, column;
};

template <typename T>
Map<T> as_map(const Tensor4& tensor) {
  return {static_cast<T*>(tensor.data), tensor.image, tensor.channel, tensor.row, tensor.column};
}

// Some blocks of LANES channels of a map whose number of channels need not fill the last one.
struct Blocks {
  int64_t first, count, channels;

  int64_t lanes(int64_t block) const {
    return std::min(LANES, channels - LANES * (first + block));
  }
};

// Copies NUMBER neighbouring values of every pixel of a row; strides of pixels count elements.
template <int NUMBER, typename T>
inline void copy_channels(const T* from, int64_t from_stride, T* to, int64_t to_stride,
                          int64_t width) {
  for (int64_t i = 0; i < width; ++i)
    std::memcpy(to + i * to_stride, from + i * from_stride, NUMBER * sizeof(T));
}

// The same for any number up to LANES, in pieces whose size a compiler knows.
template <typename T>
inline void copy_lanes(int64_t number, const T* from, int64_t from_stride, T* to,
                       int64_t to_stride, int64_t width) {
  if (number == LANES) return copy_channels<LANES>(from, from_stride, to, to_stride, width);
  int64_t done = 0;
  const auto piece = [&](auto size) {
    if (!(number & size)) return;
    copy_channels<size>(from + done, from_stride, to + done, to_stride, width);
    done += size;
  };
  piece(std::integral_constant<int, 8>{});
  piece(std::integral_constant<int, 4>{});
  piece(std::integral_constant<int, 2>{});
  piece(std::integral_constant<int, 1>{});
}

// Copies a row of a map to ``to``, (blocks, pitch, LANES) with ``pad`` pixels before the first one,
// and takes ``centre`` off every channel if there is one.
template <typename T>
void read_row(const Map<const T>& map, int64_t image, int64_t row, int64_t width,
              const Blocks& blocks, const T* centre, T* to, int64_t pitch, int64_t pad) {
  for (int64_t block = 0; block < blocks.count; ++block) {
    const int64_t lanes = blocks.lanes(block), channel = LANES * (blocks.first + block);
    const T* from = map.data + image * map.image + row * map.row + channel * map.channel;
    T* out = to + (block * pitch + pad) * LANES;
    const Vec<T> mean = centre ? at(centre + channel) : Vec<T>{};
    if (map.channel == 1 && lanes == LANES) {
      for (int64_t i = 0; i < width; ++i) {
        Vec<T> value;
        std::memcpy(&value, from + i * map.column, sizeof(value));
        at(out + i * LANES) = value - mean;
      }
      continue;
    }
    if (map.channel == 1) {
      copy_lanes(lanes, from, map.column, out, LANES, width);
    } else {
      for (int64_t lane = 0; lane < lanes; ++lane)
        for (int64_t i = 0; i < width; ++i)
          out[i * LANES + lane] = from[lane * map.channel + i * map.column];
    }
    if (centre)
      for (int64_t i = 0; i < width; ++i) at(out + i * LANES) -= mean;
  }
}

// Copies a row (blocks, width, LANES) to a map.
template <typename T>
void write_row(const T* from, const Map<T>& map, int64_t image, int64_t row, int64_t width,
               const Blocks& blocks) {
  for (int64_t block = 0; block < blocks.count; ++block) {
    const int64_t lanes = blocks.lanes(block), channel = LANES * (blocks.first + block);
    T* out = map.data + image * map.image + row * map.row + channel * map.channel;
    const T* own = from + block * width * LANES;
    if (map.channel == 1) {
      copy_lanes(lanes, own, LANES, out, map.column, width);
    } else {
      for (int64_t lane = 0; lane < lanes; ++lane)
        for (int64_t i = 0; i < width; ++i)
          out[lane * map.channel + i * map.column] = own[i * LANES + lane];
    }
  }
}

// The rows of a map that a kernel covers, a number taken off every channel. What lies outside of
// the map is zero there, and so the negative of that number here.
template <typename T, int ROWS>
class Window {
 public:
  Window(const Map<const T>& map, int64_t height, int64_t width, int64_t pad, const T* centre,
         const Blocks& blocks)
      : map_(map),
        blocks_(blocks),
        centre_(centre),
        height_(height),
        width_(width),
        pad_(pad),
        pitch_(width + 2 * pad),
        rows_((ROWS + 1) * blocks.count * pitch_ * LANES) {
    // One more than the kernel has, for what lies above and below.
    for (int64_t slot = 0; slot <= ROWS; ++slot)
      for (int64_t block = 0; block < blocks.count; ++block)
        for (int64_t i = 0; i < pitch_; ++i)
          at(place(slot, block) + i * LANES) = -at(centre + LANES * (blocks.first + block));
  }

  void start(int64_t image) {
    image_ = image;
    next_ = 0;
  }

  // Makes rows up to this one available, as long as those of the kernel before it.
  void reach(int64_t row) {
    for (; next_ <= std::min(row, height_ - 1); ++next_)
      read_row(map_, image_, next_, width_, blocks_, centre_, place(next_ % ROWS, 0), pitch_, pad_);
  }

  // A row of a block, (width + 2 pad, LANES).
  const T* row(int64_t row, int64_t block) {
    return place(row < 0 || row >= height_ ? ROWS : row % ROWS, block);
  }

 private:
  T* place(int64_t slot, int64_t block) {
    return rows_ + (slot * blocks_.count + block) * pitch_ * LANES;
  }

  const Map<const T> map_;
  const Blocks blocks_;
  const T* const centre_;
  const int64_t height_, width_, pad_, pitch_;
  Buffer<T> rows_;
  int64_t image_ = 0, next_ = 0;
};
